"""Fusion methods: each chooses what every fused space holds; a new one is one decorated function in one file."""

from featalign.fuse.methods import (  # noqa: F401 - they register
    ancestry,
    encoders,
    features,
    interpolation,
    learned,
    merge_many,
    pools,
    regmean,
    universes,
    zipit,
)
from featalign.fuse.methods.registry import METHODS, Method, Proposal, available, fusion_method, require

__all__ = ["METHODS", "Method", "Proposal", "available", "fusion_method", "require"]
