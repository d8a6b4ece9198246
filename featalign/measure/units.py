"""Per-unit polysemanticity in closed form: effective number of features, class profiles, class selectivity."""

from __future__ import annotations

import torch

from featalign.errors import SpaceMismatch


def effective_features_per_unit(codes: torch.Tensor, atoms: torch.Tensor) -> torch.Tensor:
    """Effective number of features that each unit carries, `[units]`: `exp(H(r))`, `r_j ~ E[z_j^2] D_ju^2`.

    Args:
        codes: `[samples, F]`; atoms: `[F, units]`.

    1 for a unit that carries one feature, F for one that carries all alike; NaN for a unit that no feature writes.
    """
    if codes.shape[-1] != atoms.shape[0]:
        raise SpaceMismatch(f"codes of {codes.shape[-1]} latents and atoms of {atoms.shape[0]}; use one dictionary")
    share = codes.double().pow(2).mean(0)[:, None] * atoms.detach().double().pow(2)
    total = share.sum(0)
    share = share / total.clamp_min(1e-300)
    entropy = -torch.xlogy(share, share).sum(0)
    return torch.where(total > 0, entropy.exp(), torch.full_like(entropy, float("nan")))


def class_profile(codes: torch.Tensor, labels: torch.Tensor, classes: int | None = None) -> torch.Tensor:
    """Mean activation of each unit per class as a share of its sum over classes, `[units, classes]`.

    Activations `[samples, units]` are rectified first; a unit that never fires has a profile of zeros.
    """
    means = _class_means(codes, labels, classes).clamp_min(0)
    return means / means.sum(1, keepdim=True).clamp_min(1e-12)


def class_selectivity(codes: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Class selectivity of each unit, `[units]`: `(mu_max - mu_rest) / (mu_max + mu_rest)` (Morcos et al. 2018).

    `mu_max` is the largest class-conditional mean activation and `mu_rest` the mean over the other classes; 1 for a
    unit that one class drives alone, 0 for one that ignores the class, NaN for one that never fires.
    """
    means = _class_means(codes, labels, None).clamp_min(0)
    if means.shape[1] < 2:
        return torch.full((means.shape[0],), float("nan"), dtype=means.dtype)
    best = means.max(1).values
    rest = (means.sum(1) - best) / (means.shape[1] - 1)
    value = (best - rest) / (best + rest).clamp_min(1e-300)
    return torch.where(best > 0, value, torch.full_like(value, float("nan")))


def _class_means(codes: torch.Tensor, labels: torch.Tensor, classes: int | None) -> torch.Tensor:
    """`[units, classes]` float64; classes without samples have mean zero."""
    if len(codes) != len(labels):
        raise SpaceMismatch(f"{len(codes)} samples of activations and {len(labels)} labels")
    onehot = torch.nn.functional.one_hot(labels, classes or -1).double()
    return codes.double().T @ onehot / onehot.sum(0).clamp_min(1)
