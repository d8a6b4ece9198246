"""Per-unit polysemanticity in closed form: effective number of features, class profiles, class selectivity."""

from __future__ import annotations

import torch

from featalign.errors import ProbeError, SpaceMismatch
from featalign.measure.arrays import Classes, labelled, rows

PAIRED = 1e-9  # weight of pairs of inputs, relative to single ones, up to which it is rounding


def effective_features_per_unit(codes: torch.Tensor, atoms: torch.Tensor) -> torch.Tensor:
    """Effective number of features that each unit carries, `[units]`: `exp(H(r))`, `r_j ~ E[z_j^2] D_ju^2`.

    Args:
        codes: `[..., F]`; atoms: `[F, units]`.

    1 for a unit that carries one feature, F for one that carries all alike; NaN for a unit that no feature writes.
    Raises `SpaceMismatch` for codes and atoms of different dictionaries.
    """
    codes = rows(codes, "codes")
    if codes.shape[-1] != atoms.shape[0]:
        raise SpaceMismatch(f"codes of {codes.shape[-1]} latents and atoms of {atoms.shape[0]}; use one dictionary")
    share = codes.pow(2).mean(0)[:, None] * atoms.detach().double().pow(2)
    total = share.sum(0)
    share = share / total.clamp_min(1e-300)
    entropy = -torch.xlogy(share, share).sum(0)
    return torch.where(total > 0, entropy.exp(), torch.full_like(entropy, float("nan")))


def class_profile(codes: torch.Tensor, labels: torch.Tensor, classes: int | None = None) -> torch.Tensor:
    """Mean activation of each unit per class as a share of its sum over classes, `[units, classes]`.

    Activations `[..., units]` are rectified first; a unit that never fires has a profile of zeros. Columns are the
    classes that are there, in increasing order; with `classes`, the ids 0 to `classes - 1` instead, zero for those
    that are not. Masked samples (negative labels) are left out. Raises `SpaceMismatch` for a label beyond `classes`.
    """
    values, found = labelled(codes, labels)
    means = _class_means(values, found).clamp_min(0)
    if classes is not None:
        if any(not isinstance(name, int) or name >= classes for name in found.names):
            raise SpaceMismatch(f"labels {found.names[:8]} of {classes} classes; leave `classes` out")
        every = means.new_zeros(len(means), classes)
        every[:, list(found.names)] = means
        means = every
    return means / means.sum(1, keepdim=True).clamp_min(1e-12)


def class_selectivity(codes: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Class selectivity of each unit, `[units]`: `(mu_max - mu_rest) / (mu_max + mu_rest)` (Morcos et al. 2018).

    `mu_max` is the largest class-conditional mean activation and `mu_rest` the mean over the other classes; 1 for a
    unit that one class drives alone, 0 for one that ignores the class, NaN for one that never fires. Classes are those
    that are there: their names, gaps between them and masked samples (negative labels) change nothing.
    """
    means = _class_means(*labelled(codes, labels)).clamp_min(0)
    if means.shape[1] < 2:
        return torch.full((means.shape[0],), float("nan"), dtype=means.dtype)
    best = means.max(1).values
    rest = (means.sum(1) - best) / (means.shape[1] - 1)
    value = (best - rest) / (best + rest).clamp_min(1e-300)
    return torch.where(best > 0, value, torch.full_like(value, float("nan")))


def _class_means(values: torch.Tensor, classes: Classes) -> torch.Tensor:
    """`[units, classes]` float64."""
    if not classes.names:
        raise ProbeError(f"all {len(classes.index)} labels are masked; pass some that are not negative")
    onehot = torch.nn.functional.one_hot(classes.index, len(classes.names)).double()
    return values.T @ onehot / onehot.sum(0)


def monosemanticity(activations: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
    """Monosemanticity score of each unit, `[units]`: activation-weighted mean cosine of the inputs that drive it.

    `sum_{i != j} a_i a_j cos(e_i, e_j) / sum_{i != j} a_i a_j` with activations scaled to [0, 1] per unit (Pach et al.
    2025, arXiv:2504.02821), in closed form linear in the samples: `(|A^T E|^2 - sum a^2) / ((sum a)^2 - sum a^2)` for
    unit embeddings `[samples, d]`. NaN for units that do not vary and for those that one input drives
    alone. Raises `SpaceMismatch` for different numbers of samples.
    """
    values, embedded = rows(activations), rows(embeddings, "embeddings")
    if len(values) != len(embedded):
        raise SpaceMismatch(f"{len(values)} samples of activations and {len(embedded)} embeddings")
    low, high = values.min(0).values, values.max(0).values
    scaled = (values - low) / (high - low).clamp_min(1e-300)
    unit = embedded / embedded.norm(dim=1, keepdim=True).clamp_min(1e-300)
    own = scaled.pow(2).sum(0)
    same = ((unit.norm(dim=1) > 0)[:, None] * scaled.pow(2)).sum(0)
    pairs = scaled.sum(0).pow(2) - own
    score = ((scaled.T @ unit).pow(2).sum(1) - same) / pairs.clamp_min(1e-300)
    return torch.where(pairs > PAIRED * own, score, torch.full_like(score, float("nan")))


def class_entropy(codes: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Entropy of each unit's class profile over the log of the class count, `[units]`: 0 one class, 1 all alike.

    The count is that of the classes that are there.
    """
    profile = class_profile(codes, labels)
    entropy = -torch.xlogy(profile, profile).sum(1) / torch.log(torch.tensor(float(max(2, profile.shape[1]))))
    return torch.where(profile.sum(1) > 0, entropy, torch.full_like(entropy, float("nan")))


def separability(codes: torch.Tensor, labels: torch.Tensor, bins: int = 20) -> torch.Tensor:
    """Jensen-Shannon divergence (base 2) between a unit's activations on its best class and on the rest, `[units]`.

    Histograms of `bins` cells over each unit's range; 0 indistinguishable, 1 disjoint.
    """
    codes, classes = labelled(codes, labels)
    best = _class_means(codes, classes).argmax(1)
    low, high = codes.min(0).values, codes.max(0).values
    cell = ((codes - low) / (high - low).clamp_min(1e-12) * bins).long().clamp(0, bins - 1)
    inside = (classes.index[:, None] == best[None, :]).double()
    histograms = []
    for weight in (inside, 1 - inside):
        counts = torch.zeros(bins, codes.shape[1], dtype=torch.double).scatter_add_(0, cell, weight)
        histograms.append(counts / counts.sum(0).clamp_min(1e-300))
    p, q = histograms
    middle = (p + q) / 2
    divergence = (torch.xlogy(p, p) + torch.xlogy(q, q)).sum(0) / 2 - torch.xlogy(middle, middle).sum(0)
    return divergence / torch.log(torch.tensor(2.0))
