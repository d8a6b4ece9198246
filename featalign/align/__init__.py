"""Basis and basis to plan, plan to maps: how one client's spaces are moved into another's."""

from featalign.align.feature import FeatureMatch, decode_by_symmetry, match_features, re_express
from featalign.align.maps import Alignment, SpaceMap
from featalign.align.neuron import align_by_activations, align_by_weights
from featalign.align.regime import Regime, regime

__all__ = [
    "Alignment",
    "FeatureMatch",
    "Regime",
    "SpaceMap",
    "align_by_activations",
    "align_by_weights",
    "decode_by_symmetry",
    "match_features",
    "re_express",
    "regime",
]
