"""Measures as pure functions: superposition, polysemanticity, dictionary and functional measures, nulls."""

from featalign.measure.agreement import Agreement
from featalign.measure.arrays import correlation
from featalign.measure.crosscoder import latent_strengths, norm_shares
from featalign.measure.probing import absorption, sparse_probing, targeted_perturbation
from featalign.measure.quality import explained_variance, redundancy, shrinkage
from featalign.measure.score import Score, mean_score
from featalign.measure.scores import MatchScores, cycle_consistency, match_scores, pairwise_mcc, relative_norms
from featalign.measure.superposition import (
    effective_features,
    feature_dimensionality,
    hoyer,
    kurtosis,
    participation_ratio,
    privileged_basis,
    superposition,
)
from featalign.measure.units import (
    class_entropy,
    class_profile,
    class_selectivity,
    effective_features_per_unit,
    monosemanticity,
    separability,
)

__all__ = [
    "Agreement",
    "MatchScores",
    "Score",
    "absorption",
    "class_entropy",
    "class_profile",
    "class_selectivity",
    "correlation",
    "cycle_consistency",
    "effective_features",
    "effective_features_per_unit",
    "explained_variance",
    "feature_dimensionality",
    "hoyer",
    "kurtosis",
    "latent_strengths",
    "match_scores",
    "mean_score",
    "monosemanticity",
    "norm_shares",
    "pairwise_mcc",
    "participation_ratio",
    "privileged_basis",
    "redundancy",
    "relative_norms",
    "separability",
    "shrinkage",
    "sparse_probing",
    "superposition",
    "targeted_perturbation",
]
