"""`Task`: what a network is for. Loss, metrics, ensemble and the target of a refitted readout come from here alone.

A task of one's own is a subclass with `loss` and `score`; everything else has a default.

>>> class Dice(fa.data.Task):
...     name, metrics = "dice", (Metric("dice"),)
...     def loss(self, outputs, targets): ...
...     def score(self, outputs, targets): return {"dice": ...}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch.nn import functional as F

from featalign.data.inputs import Batch
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
        metrics: the first is the headline.
        heads: names of readout targets for the refit; the first is the default.
        class_names: of classes, labels or outputs, where there are any.
    """

    name: ClassVar[str] = "task"
    metrics: tuple[Metric, ...] = ()
    heads: ClassVar[tuple[str, ...]] = ("mean",)
    class_names: tuple[str, ...] = ()

    @property
    def metric(self) -> Metric:
        """The headline metric."""
        return self.metrics[0]

    def targets(self, batch: Batch) -> Any:
        """What the outputs of a batch are compared with; raises `TaskError` where the batch brings nothing."""
        if batch.targets is None:
            raise TaskError(
                f"task '{self.name}' needs targets; pass evaluate=(inputs, targets) or batches with 'labels'"
            )
        return batch.targets

    def check(self, outputs: torch.Tensor, targets: Any) -> None:
        """Raise `TaskError`, in one line with the remedy, when outputs and targets do not fit the task."""

    def loss(self, outputs: torch.Tensor, targets: Any) -> torch.Tensor:
        """Loss of every example, token or element that counts, `[elements]`."""
        raise NotImplementedError

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
        return sum((w * output.double() for w, output in zip(weights, outputs)), torch.zeros(())).to(outputs[0])

    def head_target(
        self,
        outputs: Sequence[torch.Tensor],
        weights: Sequence[float],
        counts: torch.Tensor | None = None,
        head: str | None = None,
    ) -> torch.Tensor:
        """What the fused readout should output, from the clients' outputs, without labels; float64, their shape."""
        if head not in (None, *self.heads):
            raise BadOption(f"head '{head}' of task '{self.name}'; choices: {', '.join(self.heads)}, none")
        return sum((w * output.double() for w, output in zip(weights, outputs)), torch.zeros(()))

    def labels(self, targets: Any) -> torch.Tensor | None:
        """One class per sample `[samples]`, for measures of selectivity; None where the task has no classes."""
        return None


class Scores:
    """Means of a task's metrics over batches: `update` for each, then `result`."""

    def __init__(self, task: Task):
        self.task = task
        self.sums: dict[str, float] = {}
        self.counts: dict[str, int] = {}

    def update(self, outputs: torch.Tensor, batch: Batch) -> None:
        """Add a batch; raises `TaskError` for a metric that is not a number."""
        targets = self.task.targets(batch)
        if isinstance(targets, torch.Tensor):
            targets = targets.to(outputs.device)
        self.task.check(outputs, targets)
        for name, value in self.task.score(outputs, targets).items():
            count, total = batch.size, value
            if isinstance(value, torch.Tensor) and value.dim():
                count, total = value.numel(), value.double().mean() if value.numel() else 0.0
            try:
                number = float(total.detach() if isinstance(total, torch.Tensor) else total)
            except (TypeError, ValueError):
                raise TaskError(
                    f"metric '{name}' of task '{self.task.name}' is a {type(value).__name__}; return a number or a "
                    "tensor with one value per element"
                ) from None
            self.sums[name] = self.sums.get(name, 0.0) + number * count
            self.counts[name] = self.counts.get(name, 0) + count

    def result(self) -> dict[str, float]:
        """`{metric: value}`."""
        if empty := [name for name, count in self.counts.items() if count == 0]:
            raise TaskError(f"metric '{empty[0]}': every target is masked; pass some that count")
        found = self.task.finish({name: total / self.counts[name] for name, total in self.sums.items()})
        for metric in self.task.metrics:
            if metric.name not in found:
                raise TaskError(
                    f"task '{self.task.name}' declares metric '{metric.name}', which score() does not return; it "
                    f"returned: {', '.join(found)}"
                )
        return {metric.name: float(found[metric.name]) for metric in self.task.metrics}


@TASKS.register("classification")
@dataclass(frozen=True)
class Classification(Task):
    """One class per example, or per position; one logit stands for two classes.

    Attributes:
        class_names: of the outputs, in order.
        class_ids: the label that stands for each output, where labels are not 0, 1, 2, ...
        class_dim: dimension of the outputs that holds the classes (1 for `[N, C, positions]`).
        ignore: label of positions that do not count.
    """

    class_names: tuple[str, ...] = ()
    class_ids: tuple[int, ...] | None = None
    class_dim: int = -1
    ignore: int = IGNORED
    metrics: tuple[Metric, ...] = field(default=(Metric("accuracy", "%"), Metric("loss", "nats", False)), repr=False)

    name: ClassVar[str] = "classification"
    heads: ClassVar[tuple[str, ...]] = ("log-mixture", "mean-logits")

    def check(self, outputs: torch.Tensor, targets: Any) -> None:
        found = self._labels(targets)
        logits = self._logits(outputs)
        if logits.shape[:-1] != found.shape:
            raise TaskError(
                f"outputs {list(outputs.shape)} and labels {list(found.shape)}: classification wants one label per "
                f"row of {list(logits.shape[:-1])}; reshape the labels or pass another task="
            )
        kept = found[found != self.ignore]
        if kept.numel() and (int(kept.min()) < 0 or int(kept.max()) >= logits.shape[-1]):
            raise TaskError(
                f"labels run from {int(kept.min())} to {int(kept.max())}, the network has {logits.shape[-1]} outputs; "
                "pass task=Classification(class_ids=...) with the label of each output"
            )

    def loss(self, outputs: torch.Tensor, targets: Any) -> torch.Tensor:
        logits, labels = self._rows(outputs, targets)
        return F.cross_entropy(logits, labels, reduction="none")

    def score(self, outputs: torch.Tensor, targets: Any) -> Mapping[str, torch.Tensor]:
        logits, labels = self._rows(outputs, targets)
        return {
            "accuracy": (logits.argmax(-1) == labels).double(),
            "loss": F.cross_entropy(logits, labels, reduction="none"),
        }

    def combine(
        self, outputs: Sequence[torch.Tensor], weights: Sequence[float], counts: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Logarithm of the averaged softmax (of a single logit: the logit of the averaged probability)."""
        return self._back(self.mixture(outputs, weights, counts).clamp_min(1e-30).log(), outputs[0])

    def head_target(
        self,
        outputs: Sequence[torch.Tensor],
        weights: Sequence[float],
        counts: torch.Tensor | None = None,
        head: str | None = None,
    ) -> torch.Tensor:
        """`log-mixture`: log of the averaged softmax, clipped and centred over classes. `mean-logits`: their mean.

        Averaged logits let a confident client that never saw a class veto it; averaged probabilities do not.
        """
        if head == "mean-logits":
            return super().head_target(outputs, weights, counts)
        if head not in (None, "log-mixture"):
            raise BadOption(f"head '{head}' of task '{self.name}'; choices: {', '.join(self.heads)}, none")
        target = self.mixture(outputs, weights, counts).clamp_min(1e-30).log().clamp_min(FLOOR)
        return self._back(target - target.mean(-1, keepdim=True), outputs[0])

    def mixture(
        self, outputs: Sequence[torch.Tensor], weights: Sequence[float], counts: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Averaged softmax `[..., classes]`, float64: `sum_k lambda_k softmax(logits_k)`, renormalised.

        With `counts [clients, classes]` each client speaks for a class in proportion to how much of it it has seen,
        `lambda_k n_k(y) / sum_j lambda_j n_j(y)`: knowledge of label counts, not of labels.
        """
        logits = [self._logits(output) for output in outputs]
        classes = logits[0].shape[-1]
        share = torch.as_tensor(weights, dtype=torch.float64, device=logits[0].device)[:, None].expand(-1, classes)
        if counts is not None:
            counts = torch.as_tensor(counts, dtype=torch.float64, device=logits[0].device)
            if counts.shape != (len(logits), classes):
                raise BadOption(f"class_counts {list(counts.shape)}; give [{len(logits)}, {classes}]")
            if not torch.isfinite(counts).all() or bool((counts < 0).any()) or not bool(counts.sum() > 0):
                raise BadOption("class_counts must be finite, non-negative and not all zero")
            spoken = share * counts
            total = spoken.sum(0, keepdim=True)
            share = torch.where(total > 0, spoken / total.clamp_min(1e-300), share)  # a class nobody saw: as without
        mixed = torch.stack([w * z.double().softmax(-1) for w, z in zip(share, logits)]).sum(0)
        return mixed / mixed.sum(-1, keepdim=True)

    def labels(self, targets: Any) -> torch.Tensor | None:
        found = self._labels(targets)
        return found if found.dim() == 1 else None

    def _logits(self, outputs: torch.Tensor) -> torch.Tensor:
        """`[..., classes]`; a single logit `z` is the pair `(0, z)`."""
        if outputs.dim() == 1:
            outputs = outputs[:, None]
        logits = outputs.movedim(self.class_dim, -1)
        return torch.cat([torch.zeros_like(logits), logits], -1) if logits.shape[-1] == 1 else logits

    def _back(self, logs: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """From `[..., classes]` to the outputs' own layout."""
        if like.dim() == 1 or like.shape[self.class_dim] == 1:
            logs = logs[..., 1:] - logs[..., :1]
        return logs[:, 0] if like.dim() == 1 else logs.movedim(-1, self.class_dim)

    def _labels(self, targets: Any) -> torch.Tensor:
        """Positions of the outputs, int64; raises `TaskError` for labels that are no class ids."""
        if not isinstance(targets, torch.Tensor):
            items = list(targets) if not hasattr(targets, "dtype") else targets.tolist()
            if items and isinstance(items[0], str):
                places = {name: k for k, name in enumerate(self.class_names)}
                if unknown := next((item for item in items if item not in places), None):
                    raise TaskError(
                        f"label '{unknown}' is a string; pass integers, or task=Classification(class_names=[...]) in "
                        "the order of the outputs"
                    )
                items = [places[item] for item in items]
            targets = torch.as_tensor(items)
        if targets.is_floating_point():
            if not bool((targets == targets.round()).all()):
                raise TaskError(f"labels are {targets.dtype} with fractions; pass task='regression' or integer classes")
            targets = targets.long()
        found = targets.long()
        if found.dim() > 1 and found.shape[-1] == 1:
            found = found.squeeze(-1)
        if self.class_ids is not None:
            ids = torch.as_tensor(self.class_ids, device=found.device)
            match = found[..., None] == ids
            unknown_ids = ~match.any(-1) & (found != self.ignore)
            if bool(unknown_ids.any()):
                raise TaskError(f"label {int(found[unknown_ids][0])} is not among class_ids {list(self.class_ids)}")
            found = torch.where(found == self.ignore, found, match.int().argmax(-1))
        return found

    def _rows(self, outputs: torch.Tensor, targets: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """`(logits [elements, classes], labels [elements])` of what counts."""
        logits, labels = self._logits(outputs), self._labels(targets).to(outputs.device)
        kept = labels != self.ignore
        return logits[kept].float() if logits.dtype.itemsize < 4 else logits[kept], labels[kept]


@TASKS.register("next-token")
@dataclass(frozen=True)
class NextToken(Task):
    """The next token of a sequence, from outputs `[N, T, vocabulary]`; targets are the inputs moved by one.

    Attributes:
        ignore: token that does not count as a target; padded positions (`attention_mask`) never do.
    """

    ignore: int = IGNORED
    metrics: tuple[Metric, ...] = field(default=(Metric("loss", "nats", False), Metric("accuracy", "%")), repr=False)

    name: ClassVar[str] = "next-token"
    heads: ClassVar[tuple[str, ...]] = ("log-mixture", "mean-logits")

    def targets(self, batch: Batch) -> torch.Tensor:
        """`[N, T]`: given ones, aligned with the outputs, or the inputs moved by one with nothing after the last."""
        if batch.targets is not None:
            return batch.targets
        tokens = batch.tokens
        if tokens is None:
            raise TaskError("task 'next-token' needs integer tokens [N, T] as inputs (or 'input_ids', or targets)")
        moved = torch.full_like(tokens, self.ignore)
        moved[:, :-1] = tokens[:, 1:]
        mask = batch.mask
        if mask is not None:
            moved[:, :-1][~mask[:, 1:]] = self.ignore
        return moved

    def check(self, outputs: torch.Tensor, targets: Any) -> None:
        if outputs.dim() != 3 or tuple(targets.shape) != tuple(outputs.shape[:2]):
            raise TaskError(
                f"outputs {list(outputs.shape)} and tokens {list(targets.shape)}: next-token prediction wants "
                "[N, T, vocabulary] and [N, T]"
            )
        Classification(ignore=self.ignore).check(outputs, targets)

    def loss(self, outputs: torch.Tensor, targets: Any) -> torch.Tensor:
        return Classification(ignore=self.ignore).loss(outputs, targets)

    def score(self, outputs: torch.Tensor, targets: Any) -> Mapping[str, torch.Tensor]:
        return Classification(ignore=self.ignore).score(outputs, targets)

    def combine(
        self, outputs: Sequence[torch.Tensor], weights: Sequence[float], counts: torch.Tensor | None = None
    ) -> torch.Tensor:
        return Classification().combine(outputs, weights, counts)

    def head_target(
        self,
        outputs: Sequence[torch.Tensor],
        weights: Sequence[float],
        counts: torch.Tensor | None = None,
        head: str | None = None,
    ) -> torch.Tensor:
        return Classification().head_target(outputs, weights, counts, head)


@TASKS.register("multi-label")
@dataclass(frozen=True)
class MultiLabel(Task):
    """Several labels per example: outputs and targets `[N, labels]`, targets 0 or 1 (negative ones do not count)."""

    class_names: tuple[str, ...] = ()
    metrics: tuple[Metric, ...] = field(default=(Metric("accuracy", "%"), Metric("loss", "nats", False)), repr=False)

    name: ClassVar[str] = "multi-label"
    heads: ClassVar[tuple[str, ...]] = ("log-mixture", "mean-logits")

    def check(self, outputs: torch.Tensor, targets: Any) -> None:
        if tuple(outputs.shape) != tuple(targets.shape):
            raise TaskError(f"outputs {list(outputs.shape)} and labels {list(targets.shape)} must have one shape")
        if not bool(((targets == 0) | (targets == 1) | (targets < 0)).all()):
            raise TaskError("multi-label targets are 0 and 1 (negative ones do not count); pass task='regression'")

    def loss(self, outputs: torch.Tensor, targets: Any) -> torch.Tensor:
        kept = targets >= 0
        return F.binary_cross_entropy_with_logits(outputs[kept], targets[kept].to(outputs), reduction="none")

    def score(self, outputs: torch.Tensor, targets: Any) -> Mapping[str, torch.Tensor]:
        kept = targets >= 0
        return {
            "accuracy": ((outputs[kept] > 0) == (targets[kept] > 0.5)).double(),
            "loss": self.loss(outputs, targets),
        }

    def combine(
        self, outputs: Sequence[torch.Tensor], weights: Sequence[float], counts: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Logit of the averaged probability of each label."""
        return self.head_target(outputs, weights).to(outputs[0])

    def head_target(
        self,
        outputs: Sequence[torch.Tensor],
        weights: Sequence[float],
        counts: torch.Tensor | None = None,
        head: str | None = None,
    ) -> torch.Tensor:
        if head == "mean-logits":
            return super().head_target(outputs, weights)
        if head not in (None, "log-mixture"):
            raise BadOption(f"head '{head}' of task '{self.name}'; choices: {', '.join(self.heads)}, none")
        mixed = torch.stack([w * z.double().sigmoid() for w, z in zip(weights, outputs)]).sum(0)
        return torch.logit(mixed, eps=1e-6).clamp(FLOOR, -FLOOR)


@TASKS.register("regression")
@dataclass(frozen=True)
class Regression(Task):
    """Real targets shaped like the outputs; `r2` is scikit-learn's for all outputs pooled. NaN targets do not count."""

    class_names: tuple[str, ...] = ()
    metrics: tuple[Metric, ...] = field(default=(Metric("mse", "", False), Metric("r2")), repr=False)

    name: ClassVar[str] = "regression"

    def check(self, outputs: torch.Tensor, targets: Any) -> None:
        if self._shaped(outputs, targets).shape != targets.shape:
            raise TaskError(f"outputs {list(outputs.shape)} and targets {list(targets.shape)} must have one shape")

    def loss(self, outputs: torch.Tensor, targets: Any) -> torch.Tensor:
        kept = torch.isfinite(targets)
        return (self._shaped(outputs, targets).double()[kept] - targets.double()[kept]).pow(2)

    def score(self, outputs: torch.Tensor, targets: Any) -> Mapping[str, torch.Tensor]:
        kept = targets.double()[torch.isfinite(targets)]
        return {"mse": self.loss(outputs, targets), "mean": kept, "square": kept**2}

    def finish(self, means: dict[str, float]) -> dict[str, float]:
        variance = means["square"] - means["mean"] ** 2
        return {"mse": means["mse"], "r2": 1 - means["mse"] / max(variance, 1e-300)}

    def _shaped(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """`[N, 1]` outputs follow `[N]` targets."""
        squeezable = outputs.dim() == targets.dim() + 1 and outputs.shape[-1] == 1
        return outputs.squeeze(-1) if squeezable else outputs


def task_of(task: Task | str | None, outputs: torch.Tensor, batch: Batch, class_names: Sequence[str] = ()) -> Task:
    """The task asked for, or the one that outputs and targets of a first batch speak for.

    Integer targets: classification (per position where shapes say so); 0 and 1 in the outputs' own shape: multi-label;
    real ones: regression; none, with tokens as inputs and `[N, T, vocabulary]` outputs: next-token. Raises `TaskError`
    where nothing fits.
    """
    found = task if isinstance(task, Task) else TASKS[task]() if task is not None else _guess(outputs, batch)
    if isinstance(found, Classification) and batch.targets is not None:
        labels = found._labels(batch.targets)
        last_fits = outputs.dim() == 1 or outputs.shape[:-1] == labels.shape
        if not last_fits and outputs.dim() > 2 and (outputs.shape[0], *outputs.shape[2:]) == tuple(labels.shape):
            found = replace(found, class_dim=1)
        if class_names and not found.class_names:
            found = replace(found, class_names=tuple(class_names))
    if batch.targets is not None or found.name == "next-token":
        found.check(outputs, found.targets(batch))
    return found


def _guess(outputs: torch.Tensor, batch: Batch) -> Task:
    targets = batch.targets
    if targets is None:
        tokens = batch.tokens
        if tokens is not None and outputs.dim() == 3 and outputs.shape[:2] == tokens.shape:
            return NextToken()
        raise TaskError(
            f"no targets, and outputs {list(outputs.shape)} are no next-token logits; pass evaluate=(inputs, targets)"
        )
    if not isinstance(targets, torch.Tensor):
        return Classification()
    binary = bool(((targets == 0) | (targets == 1)).all())
    if targets.shape == outputs.shape and outputs.dim() > 1 and outputs.shape[-1] > 1 and binary:
        return MultiLabel()
    if targets.is_floating_point() and not (binary and targets.dim() == 1):
        return Regression()
    return Classification()
