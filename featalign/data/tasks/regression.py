"""Real targets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from featalign.data.batch import Batch
from featalign.data.task import IGNORED, TASKS, Metric, Task, numbers
from featalign.errors import TaskError


@TASKS.register("regression")
@dataclass(frozen=True)
class Regression(Task):
    """Real targets shaped like the outputs; `r2` is scikit-learn's for all outputs pooled. NaN targets do not count."""

    class_names: tuple[str, ...] = ()
    metrics: tuple[Metric, ...] = field(default=(Metric("mse", "", False), Metric("r2")), repr=False)

    name: ClassVar[str] = "regression"

    @classmethod
    def guess(cls, outputs: torch.Tensor, batch: Batch) -> Task | None:
        """Numbers in the shape of the outputs (a last dimension of one aside) that are not all 0 and 1."""
        targets = batch.targets
        if not hasattr(targets, "dtype") or getattr(targets.dtype, "kind", "f") in "OUS" or batch.self_labelled:
            return None
        found = torch.as_tensor(targets)
        if _squeezed(found).shape != _squeezed(outputs).shape:
            return None
        marks = (found == 0) | (found == 1) | (found == IGNORED)
        if not found.is_floating_point():
            marks |= found == -1
        return None if bool(marks.all()) else cls()

    def outputs_for(self, batch: Batch) -> int:
        """Numbers per example."""
        shape = numbers(self.targets(batch), self.name).shape
        return int(shape[-1]) if len(shape) > 1 else 1

    def check(self, outputs: torch.Tensor, targets: Any) -> None:
        found = numbers(targets, self.name)
        if _squeezed(outputs).shape != _squeezed(found).shape:
            raise TaskError(
                f"outputs {list(outputs.shape)} and targets {list(found.shape)} must have one shape; class ids are "
                "task='classification'"
            )
        if bool(torch.isinf(found).any()):
            raise TaskError(f"targets {list(found.shape)} hold infinity; drop them, or mark them as NaN: not counted")

    def loss(self, outputs: torch.Tensor, targets: Any) -> torch.Tensor:
        predicted, wanted = self._pairs(outputs, targets)
        return (predicted - wanted).pow(2)

    def score(self, outputs: torch.Tensor, targets: Any) -> Mapping[str, torch.Tensor]:
        predicted, wanted = self._pairs(outputs, targets)
        return {"mse": (predicted - wanted).pow(2), "mean": wanted, "square": wanted**2}

    def finish(self, means: dict[str, float]) -> dict[str, float]:
        """`r2 = 1 - mse / variance`; of constant targets 1 or 0, as scikit-learn has it."""
        variance = means["square"] - means["mean"] ** 2
        constant = variance <= 1e-14 * means["square"]
        r2 = float(means["mse"] == 0) if constant else 1 - means["mse"] / variance
        return {"mse": means["mse"], "r2": r2}

    def _pairs(self, outputs: torch.Tensor, targets: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """`(outputs [elements], targets [elements])` of the targets that count, float64."""
        wanted = _squeezed(numbers(targets, self.name)).to(outputs.device).double()
        kept = ~torch.isnan(wanted)
        return _squeezed(outputs)[kept].double(), wanted[kept]


def _squeezed(values: torch.Tensor) -> torch.Tensor:
    """`[N]` for `[N, 1]`; anything else as it is."""
    return values.squeeze(-1) if values.dim() > 1 and values.shape[-1] == 1 else values
