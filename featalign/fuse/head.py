"""Targets of the last layer: what the fused network should output, without labels."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from featalign.errors import BadOption
from featalign.registry import Registry

HEADS: Registry = Registry("head target")


def mixture(
    logits: Sequence[torch.Tensor], mixing: Sequence[float], class_counts: torch.Tensor | None = None
) -> torch.Tensor:
    """Averaged softmax `[samples, classes]`, float64: `sum_k lambda_k softmax(logits_k)`, renormalised.

    With `class_counts [clients, classes]` each client speaks for a class in proportion to how much of that class it
    has seen, `lambda_k n_k(y) / sum_j lambda_j n_j(y)`: knowledge of label counts, not of labels.
    """
    weights = torch.as_tensor(mixing, dtype=torch.float64)[:, None].expand(-1, logits[0].shape[-1])
    if class_counts is not None:
        if class_counts.shape != (len(logits), logits[0].shape[-1]):
            raise BadOption(f"class_counts {tuple(class_counts.shape)}: give [{len(logits)}, {logits[0].shape[-1]}]")
        weights = weights * class_counts.double()
        weights = weights / weights.sum(0, keepdim=True).clamp_min(1e-12)
    total = torch.stack([w * z.double().softmax(-1) for w, z in zip(weights, logits)]).sum(0)
    return total / total.sum(-1, keepdim=True)


@HEADS.register("log-mixture")
def log_mixture(
    logits: Sequence[torch.Tensor],
    mixing: Sequence[float],
    class_counts: torch.Tensor | None = None,
    floor: float = -12,
) -> torch.Tensor:
    """Log of the averaged softmax, clipped at `floor` and centred over classes.

    Averaged logits let a confident client that never saw a class veto it; averaged probabilities do not.
    """
    target = mixture(logits, mixing, class_counts).clamp_min(1e-30).log().clamp_min(floor)
    return target - target.mean(-1, keepdim=True)


@HEADS.register("mean-logits")
def mean_logits(
    logits: Sequence[torch.Tensor], mixing: Sequence[float], class_counts: torch.Tensor | None = None
) -> torch.Tensor:
    """`sum_k lambda_k logits_k`: what averaging the output layer aims at."""
    return torch.stack([w * z.double() for w, z in zip(mixing, logits)]).sum(0)
