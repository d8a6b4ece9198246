"""Learning from another network's outputs (Hinton et al. 2015)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.nn import functional as F

from featalign.data.task import Metric, Task
from featalign.errors import BadOption, TaskError


@dataclass(frozen=True)
class Distillation(Task):
    """Classes from a teacher's logits, and the labels beside them.

    Loss per example: `share T^2 KL(softmax(t / T) | softmax(z / T)) + (1 - share) CE(z, y)`, with teacher's logits t.
    Targets are `[samples, classes + 1]`: the teacher's logits and, last, the label (`soft_targets`).

    Attributes:
        temperature: T, above 0.
        share: of the loss that the teacher decides, within [0, 1].
    """

    temperature: float = 4.0
    share: float = 0.7
    metrics: tuple[Metric, ...] = (Metric("accuracy", "%"), Metric("loss", "nats", False))

    name: ClassVar[str] = "distillation"

    def __post_init__(self) -> None:
        if not self.temperature > 0 or not 0 <= self.share <= 1:
            raise BadOption(f"temperature = {self.temperature}, share = {self.share}; give one above 0, one in [0, 1]")

    def check(self, outputs: torch.Tensor, targets: Any) -> None:
        wanted = (len(outputs), outputs.shape[-1] + 1)
        if outputs.dim() != 2 or tuple(getattr(targets, "shape", ())) != wanted:
            raise TaskError(
                f"outputs {list(outputs.shape)} and targets {list(getattr(targets, 'shape', ()))}: distillation wants "
                f"[samples, classes] and the teacher's logits with the labels, {list(wanted)}; see soft_targets"
            )

    def loss(self, outputs: torch.Tensor, targets: Any) -> torch.Tensor:
        teacher, heat = targets[:, :-1], self.temperature
        soft = F.kl_div(
            F.log_softmax(outputs / heat, -1), F.log_softmax(teacher / heat, -1), reduction="none", log_target=True
        )
        hard = F.cross_entropy(outputs, targets[:, -1].long(), reduction="none")
        return self.share * heat**2 * soft.sum(-1) + (1 - self.share) * hard

    def score(self, outputs: torch.Tensor, targets: Any) -> Mapping[str, torch.Tensor | float]:
        return {
            "accuracy": (outputs.argmax(-1) == targets[:, -1].long()).double(),
            "loss": self.loss(outputs, targets),
        }


def soft_targets(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """`[samples, classes + 1]`: a teacher's logits with the labels behind them."""
    return torch.cat([logits, labels[:, None].to(logits)], dim=1)
