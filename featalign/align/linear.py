"""Linear maps between two clients' activations: the one home of the polar factor, of ridge maps and of correlation."""

from __future__ import annotations

import torch

from featalign.align.maps import SpaceMap
from featalign.spaces.graph import Symmetry

FAINT = 1e-9  # pull towards the identity, relative to the covariance


def polar(cross: torch.Tensor) -> torch.Tensor:
    """The (semi-)orthogonal matrix closest to `cross [m, n]`, `U V^T` of its SVD, float64 (Schonemann 1966)."""
    u, _, vh = torch.linalg.svd(cross.double(), full_matrices=False)
    return u @ vh


def rotation(cross: torch.Tensor, residual: float = float("nan")) -> SpaceMap:
    """The polar factor of `cross [m, n]`, the covariance of target and source, as a space map.

    Directions in which nothing varies stay where they are (equal widths).
    """
    if len(cross) == cross.shape[1]:
        cross = cross + FAINT * cross.norm() * torch.eye(len(cross), dtype=cross.dtype, device=cross.device)
    out = polar(cross)
    return SpaceMap(out, out.T.contiguous(), Symmetry.ORTHOGONAL, residual)


def orthogonal_map(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """`[m, n]`: the (semi-)orthogonal map that carries `a [samples, n]` closest to `b [samples, m]`, both centred."""
    return polar((b - b.mean(0)).double().T @ (a - a.mean(0)).double())


def ridge_map(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """`[n, m]`: ridge regression of centred `b` on centred `a`; the penalty by generalised cross-validation.

    Source: Golub, Heath and Wahba 1979.
    """
    values, vectors = torch.linalg.eigh(a.T @ a)
    values = values.clamp_min(0)
    projected = vectors.T @ (a.T @ b)  # [n, m]
    energy = projected.pow(2).sum(1)
    total, samples = float(b.pow(2).sum()), len(a)
    best, choice = float("inf"), float(values.max())
    for penalty in (float(values.max()) * 10.0**power for power in range(-8, 2)):
        shrunk = values + penalty
        freedom = float((values / shrunk).sum())
        if freedom > 0.95 * samples:
            continue
        residual = total - float((energy * (values + 2 * penalty) / shrunk.pow(2)).sum())
        score = max(residual, 0.0) / (1 - freedom / samples) ** 2
        if score < best:
            best, choice = score, penalty
    return vectors @ (projected / (values + choice)[:, None])


def solve_ridge(gram: torch.Tensor, cross: torch.Tensor, share: float) -> torch.Tensor:
    """`(G + p I)^-1 C` for `G [n, n]` and `C [n, m]`, with the penalty `p` a `share` of the mean diagonal of `G`."""
    penalty = share * gram.diagonal().mean().clamp_min(1e-300)
    return torch.linalg.solve(gram + penalty * torch.eye(len(gram), dtype=gram.dtype, device=gram.device), cross)
