"""Linear spaces and rotation-symmetric streams: Procrustes on activations and weights, and the best linear map."""

from __future__ import annotations

import torch

from featalign.align.linear import ridge_map, rotation
from featalign.align.maps import SpaceMap
from featalign.align.matchers.registry import matcher
from featalign.align.pair import Pair
from featalign.spaces.graph import Symmetry


@matcher("procrustes", spaces="rotations", needs=("rotations",))
def procrustes(pair: Pair, *, center: bool = False) -> SpaceMap:
    """Rotation that explains most of the target's activations; units elsewhere.

    A stream is read at every depth. Uncentred by default: rotations fix the origin. Directions that no layer writes
    (the mean, under LayerNorm) are carried into each other. Source: Schonemann 1966.
    """
    moments = pair.stream_moments
    second = moments.covariance_ab
    energy_a, energy_b = moments.variance_a.sum(), moments.variance_b.sum()
    if not center:
        second = second + torch.outer(moments.mean_a, moments.mean_b)
        energy_a, energy_b = energy_a + moments.mean_a.pow(2).sum(), energy_b + moments.mean_b.pow(2).sum()
    mine, theirs = pair.silent
    if mine.shape[1] == theirs.shape[1]:
        second = second - mine @ (mine.T @ second)
        second = second - (second @ theirs) @ theirs.T
    found = rotation(second.T)
    explained = 2 * (found.out * second.T).sum() - energy_a
    return SpaceMap(found.out, found.into, found.symmetry, float(1 - explained / energy_b.clamp_min(1e-30)))


@matcher("procrustes-wts", spaces="rotations", needs=("rotations",), default=False, paired=False)
def procrustes_weights(pair: Pair) -> SpaceMap:
    """Rotation that brings everything written to and read from a space closest; units elsewhere."""
    return pair.clients.weight_alignment.maps[pair.name]


@matcher("linear", spaces="rotations", needs=("rotations",), default=False, exact=False)
def linear(pair: Pair) -> SpaceMap:
    """Best linear map of activations, read back by its transpose: the naive contrast to rotations."""
    a, b = (torch.cat(parts).double() for parts in zip(*pair.posts()))
    out = ridge_map(a - a.mean(0), b - b.mean(0)).T.contiguous()
    return SpaceMap(out, out.T.contiguous(), Symmetry.LINEAR)
