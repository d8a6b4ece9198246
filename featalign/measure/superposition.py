"""Superposition without known truth, and the privileged basis."""

from __future__ import annotations

import numpy as np
import torch
from scipy.special import xlogy

from featalign.errors import SpaceMismatch
from featalign.measure.arrays import rows
from featalign.measure.score import Score, centred_interval, mean_score


def effective_features(codes: torch.Tensor, atoms: torch.Tensor) -> float:
    """Effective number of features in use: `exp(H(p))`, `p_j ~ E|z_j| |d_j|` with decoder norms folded in.

    Codes `[..., F]`, atoms `[F, n]`. Source: superposition as lossy compression (arXiv:2512.13568).
    """
    return float(_perplexity(_masses(codes, atoms).mean(0).numpy()))


def _masses(codes: torch.Tensor, atoms: torch.Tensor) -> torch.Tensor:
    """`|z_j| |d_j|` of each sample, `[samples, F]`."""
    found = rows(codes, "codes")
    if found.shape[1] != len(atoms):
        raise SpaceMismatch(f"codes of {found.shape[1]} latents and atoms of {len(atoms)}; use one dictionary")
    return found.abs() * torch.as_tensor(atoms).double().norm(dim=1)


def _perplexity(mass: np.ndarray) -> np.ndarray:
    """`exp(H)` of masses `[..., F]` as shares of their sum."""
    share = mass / np.maximum(mass.sum(-1, keepdims=True), 1e-300)
    return np.exp(-xlogy(share, share).sum(-1))


def superposition(codes: torch.Tensor, atoms: torch.Tensor, null: float = float("nan"), parts: int = 64) -> Score:
    """`psi = exp(H(p)) / m`: effective features per dimension of a layer of `m` units; read it along width and L0.

    `codes [..., F]`, `atoms [F, m]`. The interval is a bootstrap over `parts` slices of the samples, centred: fewer
    distinct samples use fewer latents, so that every resample lies below the whole. `null` is the psi of a dictionary
    trained on a control (a network with shuffled weights). Coverage is the share of latents that fire.
    """
    masses, units = _masses(codes, atoms), atoms.shape[1]
    sums = np.stack([part.sum(0).numpy() for part in masses.chunk(parts)])
    value = float(_perplexity(sums.sum(0)) / units)

    def psi(chosen: np.ndarray, axis: int = -1) -> np.ndarray:
        counts = (chosen[..., None] == np.arange(len(sums))).sum(-2)
        return _perplexity(counts @ sums) / units

    interval = centred_interval(value, np.arange(len(sums)), psi)
    return Score(value, null, interval, float((masses > 0).any(0).double().mean()), len(masses))


def feature_dimensionality(weights: torch.Tensor) -> torch.Tensor:
    """`D_i = |W_i|^4 / sum_j (W_i . W_j)^2` of known features, rows of `weights [features, m]` (Elhage et al. 2022).

    The share of a dimension each feature has to itself; their sum is at most m. Zero for features without a direction.
    """
    gram = weights.double() @ weights.double().T
    squared = gram.pow(2).sum(1)
    return torch.where(squared > 0, gram.diagonal().pow(2) / squared.clamp_min(1e-300), torch.zeros_like(squared))


def participation_ratio(activations: torch.Tensor) -> float:
    """`(tr C)^2 / tr C^2` of the covariance of activations `[samples, n]`: effective linear dimensions, 1 to n."""
    values = rows(activations)
    centred = values - values.mean(0)
    covariance = centred.T @ centred / len(centred)
    return float(covariance.trace() ** 2 / covariance.pow(2).sum().clamp_min(1e-300))


def kurtosis(activations: torch.Tensor) -> torch.Tensor:
    """Excess kurtosis of each unit, `[n]`; NaN for constant units. Gaussian 0, sparse codes large."""
    values = rows(activations)
    centred = values - values.mean(0)
    variance = centred.pow(2).mean(0)
    value = centred.pow(4).mean(0) / variance.pow(2).clamp_min(1e-300) - 3
    return torch.where(variance > 1e-12, value, torch.full_like(value, float("nan")))


def hoyer(activations: torch.Tensor) -> torch.Tensor:
    """Hoyer sparsity of each unit, `[n]`: `(sqrt(N) - |a|_1 / |a|_2) / (sqrt(N) - 1)`; NaN where all zero."""
    values = rows(activations)
    root = len(values) ** 0.5
    norm = values.norm(dim=0)
    ratio = (root - values.abs().sum(0) / norm.clamp_min(1e-300)) / (root - 1)
    return torch.where(norm > 0, ratio, torch.full_like(ratio, float("nan")))


def privileged_basis(activations: torch.Tensor, rotations: int = 8, seed: int = 0) -> Score:
    """Mean excess kurtosis of units `[..., units]` against the same after random rotations (Elhage et al. 2023).

    Above its null where the units, and not just any directions, are what the network computes with.
    """
    generator = torch.Generator().manual_seed(seed)
    values = rows(activations)
    centred = values - values.mean(0)
    found = []
    for _ in range(rotations):
        rotation = torch.linalg.qr(torch.randn(centred.shape[1], centred.shape[1], generator=generator).double()).Q
        found.append(float(kurtosis(centred @ rotation).nanmean()))
    return mean_score(kurtosis(values).numpy(), null=sum(found) / len(found))
