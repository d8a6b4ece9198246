"""Several labels per example."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch.nn import functional as F

from featalign.data.batch import Batch
from featalign.data.task import FLOOR, IGNORED, TASKS, Metric, Task, average, numbers
from featalign.errors import TaskError


@TASKS.register("multi-label")
@dataclass(frozen=True)
class MultiLabel(Task):
    """Several labels per example: outputs and targets `[N, labels]`, targets 0 or 1 (negative ones do not count)."""

    class_names: tuple[str, ...] = ()
    metrics: tuple[Metric, ...] = field(default=(Metric("accuracy", "%"), Metric("loss", "nats", False)), repr=False)

    name: ClassVar[str] = "multi-label"
    heads: ClassVar[tuple[str, ...]] = ("log-mixture", "mean-logits", "cross-entropy")
    fitted_heads: ClassVar[tuple[str, ...]] = ("cross-entropy",)

    @classmethod
    def guess(cls, outputs: torch.Tensor, batch: Batch) -> Task | None:
        """Zeros and ones in the shape of the outputs, which are two or more per example."""
        targets = batch.targets
        if not hasattr(targets, "dtype") or outputs.dim() < 2 or outputs.shape[-1] < 2:
            return None
        if tuple(targets.shape) != tuple(outputs.shape):
            return None
        found = torch.as_tensor(targets)
        return cls() if bool(((found == 0) | (found == 1) | (found == -1) | (found == IGNORED)).all()) else None

    def outputs_for(self, batch: Batch) -> int:
        """One per label."""
        return int(self._numbers(self.targets(batch)).shape[-1])

    def check(self, outputs: torch.Tensor, targets: Any) -> None:
        found = self._numbers(targets)
        if tuple(outputs.shape) != tuple(found.shape):
            raise TaskError(
                f"outputs {list(outputs.shape)} and labels {list(found.shape)} must have one shape; one label per "
                "example is task='classification'"
            )
        if not _binary(found):
            raise TaskError("multi-label targets are 0 and 1 (negative ones do not count); pass task='regression'")

    def loss(self, outputs: torch.Tensor, targets: Any) -> torch.Tensor:
        found = self._numbers(targets).to(outputs.device)
        kept = found >= 0
        logits = outputs[kept].float() if outputs.dtype.itemsize < 4 else outputs[kept]
        return F.binary_cross_entropy_with_logits(logits, found[kept].to(logits), reduction="none")

    def score(self, outputs: torch.Tensor, targets: Any) -> Mapping[str, torch.Tensor]:
        found = self._numbers(targets).to(outputs.device)
        kept = found >= 0
        right = (outputs[kept] > 0) == (found[kept] > 0.5)
        return {"accuracy": right.double(), "loss": self.loss(outputs, targets)}

    def combine(
        self, outputs: Sequence[torch.Tensor], weights: Sequence[float], counts: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Logits `[rows, labels]` of the averaged probability of each label."""
        return self.head_target(outputs, weights).to(outputs[0])

    def head_target(
        self,
        outputs: Sequence[torch.Tensor],
        weights: Sequence[float],
        counts: torch.Tensor | None = None,
        head: str | None = None,
        temper: float = 1.0,
    ) -> torch.Tensor:
        self.check_head(head)
        if head == "mean-logits":
            return average(outputs, weights)
        mixed = torch.stack([w * z.double().sigmoid() for w, z in zip(weights, outputs)]).sum(0)
        return torch.logit(mixed, eps=1e-6).clamp(FLOOR, -FLOOR)

    def head_loss(self, outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Cross-entropy to the target's probabilities, a scalar."""
        return F.binary_cross_entropy_with_logits(outputs, target.sigmoid(), reduction="none").sum(-1)

    def distance(self, outputs: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        """`[rows, labels]`: one where the answer is another, else zero."""
        return ((outputs > 0) != (wanted > 0)).double().flatten()

    def _numbers(self, targets: Any) -> torch.Tensor:
        found = numbers(targets, self.name)
        return found.int() if found.dtype == torch.bool else found


def _binary(targets: torch.Tensor) -> bool:
    """Zeros and ones, apart from negative ones, which do not count."""
    return bool(((targets == 0) | (targets == 1) | (targets < 0)).all())
