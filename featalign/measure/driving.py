"""Which inputs drive a unit: one kind or several. What a dictionary of the unit's own layer cannot see."""

from __future__ import annotations

import torch

from featalign.errors import SpaceMismatch
from featalign.measure.arrays import rows

RANK = 64  # directions of the inputs that are kept
SHUFFLES, ABOVE = 4, 1.2  # a direction counts above so many times the largest eigenvalue of so many shuffles


def driving_kinds(activations: torch.Tensor, inputs: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """Kinds of inputs that drive each unit, `[units]`: 1 for one direction of the inputs, 2 for the sum of two.

    `exp(H)` of the significant eigenvalues of `E_u[e e^T] - I`, `e` the whitened leading components of `inputs
    [samples, d]` and `E_u` the mean weighed by how far the unit is above its mean (spike-triggered covariance, Schwartz
    et al. 2006). Significant is well above the largest eigenvalue after shuffling the samples. Sums of inputs that are
    not sparse (jointly Gaussian) count as one direction. NaN where no direction is significant.
    """
    values, found = rows(activations), rows(inputs, "inputs")
    if len(values) != len(found):
        raise SpaceMismatch(f"{len(values)} samples of activations and {len(found)} inputs")
    white = _whitened(found)
    weight = (values - values.mean(0)).clamp_min(0)
    weight = weight / weight.sum(0).clamp_min(1e-300)
    draw = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(len(values), generator=draw) for _ in range(SHUFFLES)]
    kinds = []
    for unit in range(values.shape[1]):
        null = torch.stack([_spectrum(white, weight[order, unit])[-1] for order in orders]).max()
        spectrum = _spectrum(white, weight[:, unit])
        kept = spectrum[spectrum > ABOVE * null.clamp_min(0)]
        share = kept / kept.sum().clamp_min(1e-300)
        kinds.append(torch.exp(-torch.xlogy(share, share).sum()) if len(kept) and null > 0 else torch.tensor(torch.nan))
    return torch.stack(kinds).double()


def read_columns(activations: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """Columns of `inputs [samples, d]` that each unit reads linearly, `[units]`: `exp(H)` of `w_j^2 var(x_j)`.

    `w` are ridge weights of the unit on the columns. 1 for one column, d for all alike; NaN for constant units.
    """
    values, found = rows(activations), rows(inputs, "inputs")
    if len(values) != len(found):
        raise SpaceMismatch(f"{len(values)} samples of activations and {len(found)} inputs")
    x, y = found - found.mean(0), values - values.mean(0)
    scale = x.pow(2).mean(0).sqrt()
    x = x / scale.clamp_min(1e-12)
    gram = x.T @ x / len(x)
    weights = torch.linalg.solve(gram + 1e-2 * torch.eye(len(gram), dtype=gram.dtype), x.T @ y / len(x))
    share = weights.pow(2) / weights.pow(2).sum(0).clamp_min(1e-300)
    effective = torch.exp(-torch.xlogy(share, share).sum(0))
    return torch.where(y.pow(2).sum(0) > 1e-12, effective, torch.full_like(effective, float("nan")))


def _whitened(inputs: torch.Tensor) -> torch.Tensor:
    """`[samples, d]` leading components of unit variance."""
    centred = inputs - inputs.mean(0)
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(centred))
    keep = min(RANK, int((values > 1e-6 * values[-1]).sum()))
    return centred @ vectors[:, -keep:] / values[-keep:].sqrt()


def _spectrum(white: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Eigenvalues, increasing, of the weighted second moment minus the identity."""
    on = weight > 0
    some = white[on]
    moment = some.T @ (weight[on, None] * some)
    return torch.linalg.eigvalsh(moment - torch.eye(white.shape[1], dtype=white.dtype))
