"""Measures as pure functions: superposition, polysemanticity, dictionary and functional measures, nulls."""

from featalign.measure.units import class_profile, class_selectivity, effective_features_per_unit

__all__ = ["class_profile", "class_selectivity", "effective_features_per_unit"]
