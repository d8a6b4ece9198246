"""Quality of a reconstruction: explained variance, shrinkage, redundancy."""

from __future__ import annotations

import torch

from featalign.errors import SpaceMismatch
from featalign.measure.arrays import rows


def explained_variance(activations: torch.Tensor, reconstruction: torch.Tensor) -> float:
    """`1 - sum |a - a_hat|^2 / sum |a - mean|^2`, both sums pooled over all samples and units `[..., n]`.

    scikit-learn's variance-weighted R^2; NaN where nothing varies. Averaging the ratio over batches is biased: pool,
    then divide.
    """
    a, b = _pair(activations, reconstruction)
    total = (a - a.mean(0)).pow(2).sum()
    return float(1 - (a - b).pow(2).sum() / total) if total > 0 else float("nan")


def shrinkage(activations: torch.Tensor, reconstruction: torch.Tensor) -> float:
    """Least-squares gain of the centred reconstruction, below 1 when it is too small: `<a, a_hat> / |a|^2`."""
    a, b = _pair(activations, reconstruction)
    a, b = a - a.mean(0), b - a.mean(0)
    return float((a * b).sum() / a.pow(2).sum().clamp_min(1e-300))


def _pair(activations: torch.Tensor, reconstruction: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    if activations.shape != reconstruction.shape:
        raise SpaceMismatch(f"activations {tuple(activations.shape)}, reconstruction {tuple(reconstruction.shape)}")
    return rows(activations), rows(reconstruction, "reconstruction")


def redundancy(atoms: torch.Tensor, limit: float = 0.9) -> float:
    """Share of atoms `[F, units]` with another atom at a cosine above `limit`."""
    atoms = rows(atoms, "atoms")
    unit = atoms / atoms.norm(dim=1, keepdim=True).clamp_min(1e-12)
    cosine = unit @ unit.T
    cosine.fill_diagonal_(-1)
    return float((cosine.max(1).values > limit).float().mean())
