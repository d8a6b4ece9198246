"""What a toy model is for: returning its inputs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from featalign.data import TASKS, Batch, Metric, Task
from featalign.errors import TaskError


@TASKS.register("reconstruction")
@dataclass(frozen=True)
class Reconstruction(Task):
    """Inputs `[N, n]` returned as outputs; the loss is the squared error summed over features (Elhage et al. 2022).

    Targets are the inputs themselves where a batch brings none.
    """

    metrics: tuple[Metric, ...] = field(default=(Metric("loss", "", False),), repr=False)

    name: ClassVar[str] = "reconstruction"

    def outputs_for(self, batch: Batch) -> int:
        """As many as there are inputs."""
        return int(self.targets(batch).shape[-1])

    def targets(self, batch: Batch) -> Any:
        return batch.tensors[0] if batch.targets is None else batch.targets

    def check(self, outputs: torch.Tensor, targets: Any) -> None:
        if tuple(outputs.shape) != tuple(targets.shape):
            raise TaskError(f"outputs {list(outputs.shape)} are no reconstruction of inputs {list(targets.shape)}")

    def loss(self, outputs: torch.Tensor, targets: Any) -> torch.Tensor:
        return (outputs.double() - targets.double()).pow(2).flatten(1).sum(1)
