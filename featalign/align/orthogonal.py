"""Orthogonal maps for linear spaces and rotation-symmetric streams: Procrustes on activations, weights and features."""

from __future__ import annotations

import torch
from torch import nn

from featalign.align.feature import FeatureMatch, decode_by_symmetry
from featalign.align.maps import SpaceMap
from featalign.align.weights import match_weights
from featalign.data.inputs import Inputs
from featalign.dictionaries.basis import Basis
from featalign.errors import SpaceMismatch
from featalign.spaces.capture import stream
from featalign.spaces.graph import Space, SpaceGraph, Symmetry
from featalign.spaces.moments import CrossMoments


def polar(cross: torch.Tensor, residual: float = float("nan")) -> SpaceMap:
    """The (semi-)orthogonal map closest to `cross [m, n]`, the covariance of target and source: `U V^T` of its SVD."""
    u, _, vh = torch.linalg.svd(cross.double(), full_matrices=False)
    rotation = (u @ vh).float()
    return SpaceMap(rotation, rotation.T.contiguous(), Symmetry.ORTHOGONAL, residual)


def stream_moments(source: nn.Module, target: nn.Module, space: Space, probe: Inputs | torch.Tensor) -> CrossMoments:
    """Joint moments of a space over every site where it is seen whole: a residual stream is read at every depth.

    Raises `SpaceMismatch` when no site shows the whole space.
    """
    sites = space.whole_sites
    if not sites:
        raise SpaceMismatch(f"space '{space.name}' is seen whole at no module's output; give a hand-written graph")
    moments = CrossMoments()
    for (_, a), (_, b) in zip(stream(source, probe, sites, 256), stream(target, probe, sites, 256)):
        for site in sites:
            if site in a:
                moments.update(a[site], b[site])
    return moments


def procrustes_activations(
    source: nn.Module, target: nn.Module, space: Space, probe: Inputs | torch.Tensor
) -> SpaceMap:
    """Rotation that explains most of the target's activations by the source's, uncentred (rotations fix the origin)."""
    moments = stream_moments(source, target, space, probe)
    second = moments.covariance_ab + torch.outer(moments.mean_a, moments.mean_b)
    found = polar(second.T)
    energy_a = moments.covariance_aa.diagonal().sum() + moments.mean_a.pow(2).sum()
    energy_b = moments.covariance_bb.diagonal().sum() + moments.mean_b.pow(2).sum()
    explained = 2 * (found.out.double() * second.T).sum() - energy_a
    return SpaceMap(found.out, found.into, found.symmetry, float(1 - explained / energy_b.clamp_min(1e-30)))


def procrustes_weights(source: nn.Module, target: nn.Module, graph: SpaceGraph, space: Space) -> SpaceMap:
    """Rotation that brings everything written to and read from a space closest, the other spaces matched with it."""
    return match_weights(source, target, graph).maps[space.name]


def procrustes_features(match: FeatureMatch, a: Basis, b: Basis) -> SpaceMap:
    """Rotation onto which a feature plan is projected: polar factor of the matched atoms, weighted by energy."""
    return decode_by_symmetry(match, a, b, Symmetry.ORTHOGONAL)[0]
