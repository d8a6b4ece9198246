"""A network on data: its outputs, its metrics, and the ensemble of several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from featalign.data.batch import Batch, unwrap
from featalign.data.inputs import Inputs
from featalign.data.task import Scores, Task, task_of
from featalign.data.tasks.classification import Classification
from featalign.errors import BadOption
from featalign.spaces.capture import evaluating, kept

ENOUGH = 2_000_000  # outputs of a network that say how sure it is


def outputs(module: nn.Module, inputs: Any) -> torch.Tensor:
    """Outputs `[samples, ...]` over all inputs, in eval mode, without gradients; training flags are restored.

    `inputs` is whatever `Inputs.of` reads.
    """
    with evaluating(module):
        return torch.cat([unwrap(batch.run(module)) for batch in Inputs.of(inputs)])


def evaluate(module: nn.Module, inputs: Any, task: Task | str | None = None) -> dict[str, float]:
    """`{metric: value}` of a network in eval mode, batch by batch.

    Args:
        inputs: `(inputs, targets)`, or whatever `Inputs.of` reads.
        task: None is read off outputs and targets of the first batch.

    Raises `TaskError` where outputs, targets and task do not fit.
    """
    scores: Scores | None = None
    with evaluating(module):
        for batch in Inputs.of(inputs, labelled=True):
            found = unwrap(batch.run(module))
            scores = scores or Scores(task_of(task, found, batch))
            scores.update(found, batch)
    assert scores is not None  # inputs give a batch or raise
    return scores.result()


def answered(module: nn.Module, batch: Batch) -> torch.Tensor:
    """Outputs `[rows, ...]` on a batch, in eval mode, without gradients and without padded tokens."""
    with evaluating(module):
        return kept(unwrap(batch.run(module)), batch.mask)


def temper_of(modules: Sequence[nn.Module], inputs: Inputs, task: Task, weights: Sequence[float]) -> float:
    """How far the confidence of networks may be compared, by their answers on inputs without labels (`Task.temper`).

    The first inputs are read, up to `ENOUGH` outputs of each network. With fewer than three networks that take part it
    is 1: two cannot tell which of them is too sure.
    """
    if sum(weight > 0 for weight in weights) < 3 or "evidence" not in task.heads:
        return 1.0
    told: list[list[torch.Tensor]] = [[] for _ in modules]
    for batch in inputs:
        for module, rows in zip(modules, told):
            rows.append(answered(module, batch))
        if sum(rows.numel() for rows in told[0]) >= ENOUGH:
            break
    return task.temper([torch.cat(rows) for rows in told], weights)


class Ensemble(nn.Module):
    """All networks kept, outputs combined as the task says: the ceiling that a single network is measured against.

    Attributes:
        members: the networks, called with whatever arguments the ensemble is called with.
        weights: of the networks; equal ones by default.
        task: how outputs combine; averaged probabilities for classification.
        counts: `[networks, classes]` label counts, for tasks that can weigh networks by what they saw.
        head: a readout target of the task to return instead (`mean-logits`: plain averages).
        temper: how far the confidence of the networks may be compared (`Task.temper`).
    """

    def __init__(
        self,
        modules: Sequence[nn.Module],
        weights: Sequence[float] | None = None,
        task: Task | None = None,
        counts: torch.Tensor | None = None,
        head: str | None = None,
        temper: float = 1.0,
    ):
        super().__init__()
        self.members = nn.ModuleList(modules)
        self.weights = tuple(weights) if weights is not None else (1 / len(modules),) * len(modules)
        self.task = task or Classification()
        self.counts, self.head, self.temper = counts, head, temper
        if len(self.weights) != len(self.members):
            raise BadOption(f"{len(self.weights)} weights for {len(self.members)} networks; give one each")
        self.task.check_head(head)

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Combined outputs, shaped like one network's."""
        found = [unwrap(member(*args, **kwargs)) for member in self.members]
        if self.head is None:
            return self.task.combine(found, self.weights, self.counts)
        return self.task.head_target(found, self.weights, self.counts, self.head, self.temper).to(found[0])
