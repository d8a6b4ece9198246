"""`Task`: what a network is for. Loss, metrics, ensemble and the target of a refitted readout come from here alone.

A task of one's own is one file with a subclass; `loss` is all that it must have. Registered, it is found by name.

>>> @fa.data.TASKS.register("dice")
... class Dice(fa.data.Task):
...     name, metrics = "dice", (fa.data.Metric("dice"),)
...     def loss(self, outputs, targets): ...
...     def score(self, outputs, targets): return {"dice": ...}
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch

from featalign.data.batch import Batch
from featalign.errors import BadOption, TaskError
from featalign.registry import Registry

IGNORED = -100  # the label of positions that do not count, as in torch's cross-entropy
FLOOR = -12.0  # logarithms of averaged probabilities are clipped here
TASKS: Registry[type[Task]] = Registry("task")


@dataclass(frozen=True)
class Metric:
    """A figure that tables, pages and curves show.

    Attributes:
        name: 'accuracy', 'loss', ...; unit: '%', 'nats', ... ('%' stands for a fraction shown times 100).
        higher_is_better: the direction.
    """

    name: str
    unit: str = ""
    higher_is_better: bool = True

    @property
    def scale(self) -> float:
        """Factor from stored to shown values."""
        return 100.0 if self.unit == "%" else 1.0

    @property
    def label(self) -> str:
        """Name with its unit, for heads of tables and axes."""
        return f"{self.name}, {self.unit}" if self.unit else self.name

    def shown(self, value: float | None) -> str:
        """The value as text, without unit."""
        if value is None or value != value:
            return "–"
        return f"{self.scale * value:.2f}" if self.unit == "%" else f"{value:.4g}"

    def gain(self, value: float, reference: float) -> float:
        """How much better `value` is than `reference`, in the metric's own units."""
        return value - reference if self.higher_is_better else reference - value


class Task:
    """What a network is for.

    Attributes:
        name: as it is registered.
        metrics: the first is the headline.
        heads: names of readout targets for the refit.
        fitted_heads: those whose readout is fitted by `head_loss`, not by least squares.
        class_names: of classes, labels or outputs, where there are any.
    """

    name: ClassVar[str] = "task"
    metrics: tuple[Metric, ...] = ()
    heads: ClassVar[tuple[str, ...]] = ("mean",)
    fitted_heads: ClassVar[tuple[str, ...]] = ()
    class_names: tuple[str, ...] = ()

    @property
    def metric(self) -> Metric:
        """The headline metric; raises `TaskError` where none is declared."""
        if not self.metrics:
            raise TaskError(f"task '{self.name}' declares no metrics; set metrics = (Metric('...'),) on the class")
        return self.metrics[0]

    @classmethod
    def guess(cls, outputs: torch.Tensor, batch: Batch) -> Task | None:
        """The task, where outputs `[batch, ...]` and targets of a batch speak for it; else, or in doubt, None."""
        return None

    def named(self, class_names: Sequence[str]) -> Task:
        """The task with names of its classes, labels or outputs, where it takes any and has none."""
        takes = is_dataclass(self) and any(item.name == "class_names" for item in fields(self))
        if class_names and takes and not self.class_names:
            return replace(self, class_names=tuple(class_names))  # type: ignore[type-var]
        return self

    def fitted(self, outputs: torch.Tensor, batch: Batch) -> Task:
        """The task with what it can read off a first batch, such as the layout of the outputs `[batch, ...]`."""
        return self

    def outputs_for(self, batch: Batch) -> int:
        """Outputs of a network for these inputs and targets (all of them, as one batch): the width of its readout.

        Raises `TaskError` where the task does not say.
        """
        raise TaskError(f"task '{self.name}' does not say how many outputs a network needs; pass outputs=")

    def to_dict(self) -> dict[str, Any]:
        """Name and options that decide what is trained, as plain values."""
        options = asdict(self) if is_dataclass(self) else dict(vars(self))  # type: ignore[call-overload]
        return {"task": self.name, **{k: v for k, v in options.items() if k not in ("metrics", "class_names")}}

    def targets(self, batch: Batch) -> Any:
        """What the outputs of a batch are compared with; raises `TaskError` where the batch brings nothing."""
        if batch.targets is None:
            raise TaskError(
                f"task '{self.name}' needs targets; pass evaluate=(inputs, targets) or batches with 'labels'"
            )
        return batch.targets

    def check(self, outputs: torch.Tensor, targets: Any) -> None:
        """Raise `TaskError`, in one line with the remedy, when outputs `[batch, ...]` and targets do not fit."""

    def loss(self, outputs: torch.Tensor, targets: Any) -> torch.Tensor:
        """Loss of every example, token or element that counts, `[elements]`."""
        raise NotImplementedError

    def smoothed_loss(self, outputs: torch.Tensor, targets: Any, share: float) -> torch.Tensor:
        """The loss `[elements]` for targets of which a share is spread evenly; raises `BadOption` without classes."""
        raise BadOption(f"task '{self.name}' has no classes to smooth labels over; train with label_smoothing = 0")

    def score(self, outputs: torch.Tensor, targets: Any) -> Mapping[str, torch.Tensor | float]:
        """Each metric's values `[elements]`, or its mean over the batch."""
        return {self.metric.name: self.loss(outputs, targets)}

    def finish(self, means: dict[str, float]) -> dict[str, float]:
        """Metrics from the means of everything `score` returned over all batches."""
        return means

    def combine(
        self, outputs: Sequence[torch.Tensor], weights: Sequence[float], counts: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The ensemble: all clients kept, outputs averaged with `weights`; shaped like one client's outputs.

        `counts [clients, classes]` are label counts, for tasks that can weigh clients by what they saw.
        """
        return average(outputs, weights).to(outputs[0])

    def head_target(
        self,
        outputs: Sequence[torch.Tensor],
        weights: Sequence[float],
        counts: torch.Tensor | None = None,
        head: str | None = None,
        temper: float = 1.0,
    ) -> torch.Tensor:
        """What the fused readout should output, from the clients' outputs, without labels; float64, their shape.

        `counts` as in `combine`; `temper` as `temper()` finds it, for targets that ask how sure clients are.
        """
        self.check_head(head)
        return average(outputs, weights)

    def temper(self, outputs: Sequence[torch.Tensor], weights: Sequence[float]) -> float:
        """How far the confidence of clients may be compared, from 0 to 1, by outputs `[rows, ...]` on equal inputs."""
        return 1.0

    def head_loss(self, outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Loss `[rows]` of a readout's outputs `[rows, outputs]` against what the target's outputs stand for."""
        return (outputs - target).pow(2).sum(-1)

    def distance(self, outputs: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        """How far outputs are from others in the same layout, `[elements]`: what choices without labels go by."""
        return self.head_loss(outputs.double(), wanted.double()).flatten()

    @property
    def head_targets(self) -> tuple[str, ...]:
        """Heads that aim at targets of their own: `cross-entropy` fits the first otherwise."""
        return tuple(head for head in self.heads if head != "cross-entropy")

    def check_head(self, head: str | None) -> None:
        """Raise `BadOption` for a readout target that the task does not have."""
        if head not in (None, *self.heads):
            raise BadOption(f"head '{head}' of task '{self.name}'; choices: {', '.join(self.heads)}, none")

    def divergence(self, outputs: torch.Tensor, ensemble: torch.Tensor) -> torch.Tensor:
        """How far a network's outputs are from those of an ensemble (`combine`), a scalar with gradients."""
        wanted = ensemble.to(outputs)
        return (self.head_loss(outputs, wanted) - self.head_loss(wanted, wanted)).mean()

    def labels(self, targets: Any) -> torch.Tensor | None:
        """One class per sample `[samples]`, for measures of selectivity; None where the task has no classes."""
        return None


def answers(task: Task) -> bool:
    """Whether a task is scored by answers that are right or wrong."""
    return bool(task.metrics) and task.metric.unit == "%"


def average(outputs: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    """`sum_k lambda_k z_k`, float64."""
    return torch.stack([w * output.double() for w, output in zip(weights, outputs)]).sum(0)


def numbers(targets: Any, task: str) -> torch.Tensor:
    """Targets as a tensor; raises `TaskError` for strings and other things that are no numbers."""
    try:
        return torch.as_tensor(targets)
    except (TypeError, ValueError, RuntimeError):
        shown = targets[0] if isinstance(targets, (list, tuple)) and targets else targets
        raise TaskError(
            f"targets of task '{task}' must be numbers, not {type(shown).__name__} such as {str(shown)[:40]!r}"
        ) from None


def labels_of(task: Task, batches: Iterable[Batch]) -> torch.Tensor | None:
    """One class per sample `[samples]` of all batches, where the task has classes and the batches targets."""
    found = []
    for batch in batches:
        try:
            labels = task.labels(task.targets(batch))
        except TaskError:
            return None
        if labels is None or labels.dim() != 1:
            return None
        found.append(labels.cpu())
    return torch.cat(found)


class Scores:
    """Means of a task's metrics over batches: `update` for each, then `result`."""

    def __init__(self, task: Task):
        self.task = task
        self.sums: dict[str, float] = {}
        self.counts: dict[str, int] = {}

    def update(self, outputs: torch.Tensor, batch: Batch) -> None:
        """Add a batch with its outputs `[batch, ...]`; raises `TaskError` for a metric that is not a number."""
        targets = self.task.targets(batch)
        if isinstance(targets, torch.Tensor):
            targets = targets.to(outputs.device)
        self.task.check(outputs, targets)
        found = self.task.score(outputs, targets)
        if not isinstance(found, Mapping):
            raise TaskError(
                f"score() of task '{self.task.name}' returned a {type(found).__name__}; return {{metric: value}}"
            )
        for name, value in found.items():
            count, total = self._total(name, value, batch.size)
            self.sums[name] = self.sums.get(name, 0.0) + total
            self.counts[name] = self.counts.get(name, 0) + count

    def result(self) -> dict[str, float]:
        """`{metric: value}`; raises `TaskError` when every target is masked or a declared metric is missing."""
        if empty := [name for name, count in self.counts.items() if count == 0]:
            raise TaskError(f"metric '{empty[0]}': every target is masked; pass some that count")
        found = self.task.finish({name: total / self.counts[name] for name, total in self.sums.items()})
        assert self.task.metric
        for metric in self.task.metrics:
            if metric.name not in found:
                raise TaskError(
                    f"task '{self.task.name}' declares metric '{metric.name}', which score() does not return; it "
                    f"returned: {', '.join(found)}"
                )
        return {metric.name: float(found[metric.name]) for metric in self.task.metrics}

    def _total(self, name: str, value: Any, samples: int) -> tuple[int, float]:
        """Elements and their sum; a single number is the mean over the batch."""
        try:
            if isinstance(value, (torch.Tensor, np.ndarray)) and value.ndim:
                elements = torch.as_tensor(value).detach().double()
                return elements.numel(), float(elements.sum())
            return samples, float(value) * samples
        except (TypeError, ValueError, RuntimeError):
            raise TaskError(
                f"metric '{name}' of task '{self.task.name}' is a {type(value).__name__}; return a number or a tensor "
                "with one value per element"
            ) from None


def task_of(task: Task | str | None, outputs: torch.Tensor, batch: Batch, class_names: Sequence[str] = ()) -> Task:
    """The task asked for, or the one that outputs and targets of a first batch speak for.

    No targets, with tokens as inputs and `[N, T, vocabulary]` outputs: next-token, also for labels that are the tokens
    themselves. 0 and 1 in the outputs' own shape `[N, labels]`: multi-label. Real ones in that shape: regression. Other
    whole numbers: classification (per position where shapes say so). Raises `TaskError` where nothing fits.
    """
    if isinstance(task, str):
        task = TASKS[task]()
    elif isinstance(task, type) and issubclass(task, Task):
        task = task()
    elif task is not None and not isinstance(task, Task):
        raise TaskError(f"task={task!r}: pass a Task, or one of the names {', '.join(TASKS)}")
    found = task or next((g for kind in TASKS if (g := TASKS[kind].guess(outputs, batch)) is not None), None)
    if found is None and batch.targets is None:
        raise TaskError(
            f"no targets, and outputs {list(outputs.shape)} are no next-token logits; pass evaluate=(inputs, targets)"
        )
    if found is None:
        shape = list(getattr(batch.targets, "shape", [len(batch.targets)]))
        raise TaskError(
            f"no task fits outputs {list(outputs.shape)} and targets {shape}; reshape the targets or pass task="
        )
    found = found.named(class_names).fitted(outputs, batch)
    if batch.targets is not None or found.name == "next-token":
        found.check(outputs, found.targets(batch))
    return found
