"""One class per example, or per position."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch.nn import functional as F

from featalign.data.batch import Batch
from featalign.data.task import FLOOR, IGNORED, TASKS, Metric, Task, average, numbers
from featalign.errors import BadOption, TaskError

LOUDEST = 2.0  # times its share of the inputs that a client may speak for
HALVINGS = 40


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
    heads: ClassVar[tuple[str, ...]] = ("log-mixture", "evidence", "mean-logits", "cross-entropy")
    fitted_heads: ClassVar[tuple[str, ...]] = ("evidence", "cross-entropy")

    @classmethod
    def guess(cls, outputs: torch.Tensor, batch: Batch) -> Task | None:
        """Whole numbers (or strings), one per row of outputs `[..., classes]`; of a single output, 0 and 1 alone."""
        targets = batch.targets
        if targets is None or batch.self_labelled:
            return None
        if not hasattr(targets, "dtype") or getattr(targets.dtype, "kind", "i") in "OUS":
            return cls()
        targets = torch.as_tensor(targets)
        if targets.is_floating_point() and not bool((targets == targets.round()).all()):
            return None
        rows = tuple(targets.shape[:-1] if targets.dim() > 1 and targets.shape[-1] == 1 else targets.shape)
        if outputs.dim() == 1 or outputs.shape[-1] == 1:
            binary = bool(((targets == 0) | (targets == 1) | (targets == IGNORED)).all())
            return cls() if binary and rows == tuple(outputs.shape[: len(rows)]) else None
        return cls() if rows in (tuple(outputs.shape[:-1]), _positions(outputs)) else None

    def fitted(self, outputs: torch.Tensor, batch: Batch) -> Task:
        """With the dimension of outputs `[batch, ...]` that holds the classes: the last, where both fit."""
        if batch.targets is not None and outputs.dim() > 2 and self.class_dim == -1:
            rows = tuple(self._labels(batch.targets).shape)
            if rows != tuple(outputs.shape[:-1]) and rows == _positions(outputs):
                return replace(self, class_dim=1)
        return self

    def outputs_for(self, batch: Batch) -> int:
        """As many as there are names, ids or, without them, labels up to the largest."""
        known = len(self.class_names) or len(self.class_ids or ())
        return known or int(self._labels(self.targets(batch)).max()) + 1

    def check(self, outputs: torch.Tensor, targets: Any) -> None:
        found = self._labels(targets)
        logits = self._logits(outputs)
        if logits.shape[:-1] != found.shape:
            raise TaskError(
                f"outputs {list(outputs.shape)} and labels {list(found.shape)}: classification wants one label per "
                f"row of {list(logits.shape[:-1])}; reshape the labels or pass task='regression' or 'multi-label'"
            )
        if self.class_ids is not None and len(self.class_ids) != logits.shape[-1]:
            raise TaskError(f"{len(self.class_ids)} class_ids for {logits.shape[-1]} classes; give one per output")
        if self.class_names and len(self.class_names) != logits.shape[-1]:
            raise TaskError(f"{len(self.class_names)} class_names for {logits.shape[-1]} classes; give one per output")
        kept = found[found != self.ignore]
        if kept.numel() and (int(kept.min()) < 0 or int(kept.max()) >= logits.shape[-1]):
            raise TaskError(
                f"labels run from {int(kept.min())} to {int(kept.max())}, the network has {logits.shape[-1]} outputs; "
                "pass task=Classification(class_ids=...) with the label of each output"
            )

    def loss(self, outputs: torch.Tensor, targets: Any) -> torch.Tensor:
        logits, labels = self._rows(outputs, targets)
        return F.cross_entropy(logits, labels, reduction="none")

    def smoothed_loss(self, outputs: torch.Tensor, targets: Any, share: float) -> torch.Tensor:
        logits, labels = self._rows(outputs, targets)
        return F.cross_entropy(logits, labels, reduction="none", label_smoothing=share)

    def score(self, outputs: torch.Tensor, targets: Any) -> Mapping[str, torch.Tensor]:
        logits, labels = self._rows(outputs, targets)
        return {
            "accuracy": (logits.argmax(-1) == labels).double(),
            "loss": F.cross_entropy(logits, labels, reduction="none"),
        }

    def combine(
        self, outputs: Sequence[torch.Tensor], weights: Sequence[float], counts: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Logarithm of the averaged softmax (of a single logit: the logit of the averaged probability).

        Of the shape of one network's outputs.
        """
        return self._back(self.mixture(outputs, weights, counts).clamp_min(1e-30).log(), outputs[0]).to(outputs[0])

    def head_target(
        self,
        outputs: Sequence[torch.Tensor],
        weights: Sequence[float],
        counts: torch.Tensor | None = None,
        head: str | None = None,
        temper: float = 1.0,
    ) -> torch.Tensor:
        """`[rows, classes]`. `log-mixture`: log of the averaged softmax, clipped, centred. `mean-logits`: their mean.

        `evidence`: log of averaged exponentials, see `evidence`. `cross-entropy` aims at the log-mixture too. Averaged
        logits let a confident client that never saw a class veto it; averaged probabilities do not, and evidence
        lets those speak who know inputs of that kind.
        """
        self.check_head(head)
        if head == "mean-logits":
            return average(outputs, weights)
        if head == "evidence":
            return self._back(self.evidence(outputs, weights, counts, temper), outputs[0])
        target = self.mixture(outputs, weights, counts).clamp_min(1e-30).log().clamp_min(FLOOR)
        return self._back(target - target.mean(-1, keepdim=True), outputs[0])

    def head_loss(self, outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Cross-entropy to the target's softmax, a scalar (of a single logit: to its probability)."""
        if outputs.shape[-1] == 1:
            return F.binary_cross_entropy_with_logits(outputs, target.sigmoid(), reduction="none").sum(-1)
        return -(target.softmax(-1) * outputs.log_softmax(-1)).sum(-1)

    def distance(self, outputs: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        """`[rows]`: one where the answer is another, else zero."""
        return (self._logits(outputs).argmax(-1) != self._logits(wanted).argmax(-1)).double().flatten()

    def mixture(
        self, outputs: Sequence[torch.Tensor], weights: Sequence[float], counts: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Averaged softmax `[..., classes]`, float64: `sum_k lambda_k softmax(logits_k)`, renormalised.

        With `counts [clients, classes]` each client speaks for a class in proportion to how much of it it has seen,
        `lambda_k n_k(y) / sum_j lambda_j n_j(y)`: knowledge of label counts, not of labels. Raises `BadOption` for
        counts of another shape, negative or all zero.
        """
        logits = self._stacked(outputs)
        mixed = (_shares(logits, weights, counts) * logits.softmax(-1)).sum(0)
        return mixed / mixed.sum(-1, keepdim=True)

    def evidence(
        self,
        outputs: Sequence[torch.Tensor],
        weights: Sequence[float],
        counts: torch.Tensor | None = None,
        temper: float = 1.0,
    ) -> torch.Tensor:
        """Log of averaged exponentials, centred: `log sum_k lambda_k exp(z_k)` of centred logits, `[..., classes]`.

        Read as a joint model, `exp(z_k(x, y))` is proportional to `p_k(x, y)` (Grathwohl et al. 2020, "Your classifier
        is secretly an energy based model", section 3), and its sum over classes tells inputs that a client knows from
        others (Liu et al. 2020, "Energy-based out-of-distribution detection"). So this is the posterior of the pooled
        data: clients speak for an input in proportion to how well they know it, which averaged probabilities ignore.
        Logits are centred because softmax leaves their mean open. `counts` as in `mixture`. The energy `E_k = log sum_y
        exp(z_k)` counts to the power of `temper`: `log sum_k lambda_k exp(z_k - (1 - temper) E_k)`, which at 0 is the
        log-mixture.
        """
        logits = self._stacked(outputs)
        centred = logits - logits.mean(-1, keepdim=True)
        centred = centred - (1 - temper) * centred.logsumexp(-1, keepdim=True)
        total = (centred + _shares(logits, weights, counts).log()).logsumexp(0)
        return total - total.mean(-1, keepdim=True)

    def temper(self, outputs: Sequence[torch.Tensor], weights: Sequence[float]) -> float:
        """The largest power up to 1 of the energies at which no client speaks for more than `LOUDEST` times its share.

        By its outputs `[rows, classes]`, client `k` speaks for an input with `softmax_k(log lambda_k + temper E_k)`. A
        client that was taught one class may be sure of everything, with energies far beyond those of the others: they
        say nothing about the input then.
        """
        logits = self._stacked(outputs).flatten(1, -2)
        energies = (logits - logits.mean(-1, keepdim=True)).logsumexp(-1)
        shares = torch.as_tensor(weights, dtype=torch.float64, device=energies.device)

        def heard(power: float) -> bool:
            spoken = (power * energies + shares.log()[:, None]).softmax(0).mean(1)
            return bool((spoken <= LOUDEST * shares).all())

        if heard(1.0):
            return 1.0
        low, high = 0.0, 1.0
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if heard(middle) else (low, middle)
        return low

    def divergence(self, outputs: torch.Tensor, ensemble: torch.Tensor) -> torch.Tensor:
        """Kullback-Leibler divergence of the network's softmax from the ensemble's, in nats per row, a scalar."""
        return super().divergence(self._logits(outputs), self._logits(ensemble))

    def labels(self, targets: Any) -> torch.Tensor | None:
        found = self._labels(targets)
        return found if found.dim() == 1 else None

    def _logits(self, outputs: torch.Tensor) -> torch.Tensor:
        """`[..., classes]`; a single logit `z` is the pair `(0, z)`."""
        if outputs.dim() == 1:
            outputs = outputs[:, None]
        logits = outputs.movedim(self.class_dim, -1)
        return torch.cat([torch.zeros_like(logits), logits], -1) if logits.shape[-1] == 1 else logits

    def _stacked(self, outputs: Sequence[torch.Tensor]) -> torch.Tensor:
        """`[clients, ..., classes]`, float64."""
        return torch.stack([self._logits(output).double() for output in outputs])

    def _back(self, logs: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """From `[..., classes]` to the outputs' own layout."""
        if like.dim() == 1 or like.shape[self.class_dim] == 1:
            logs = logs[..., 1:] - logs[..., :1]
        return logs[:, 0] if like.dim() == 1 else logs.movedim(-1, self.class_dim)

    def _labels(self, targets: Any) -> torch.Tensor:
        """Positions of the outputs, int64; raises `TaskError` for labels that are no class ids."""
        if not isinstance(targets, torch.Tensor):
            targets = torch.as_tensor(self._named(targets.tolist() if hasattr(targets, "dtype") else list(targets)))
        if targets.is_floating_point() and not bool((targets == targets.round()).all()):
            raise TaskError(f"labels are {targets.dtype} with fractions or NaN; pass task='regression' or class ids")
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

    def _named(self, items: list[Any]) -> Any:
        """Labels with the names of classes replaced by their positions."""
        if not items or not isinstance(items[0], str):
            return numbers(items, self.name)
        places = {name: k for k, name in enumerate(self.class_names)}
        if (unknown := next((item for item in items if item not in places), None)) is not None:
            known = f" ({', '.join(self.class_names[:10])})" if self.class_names else ""
            raise TaskError(
                f"label '{unknown}' is a string that names no class{known}; pass integers, or "
                "task=Classification(class_names=[...]) in the order of the outputs"
            )
        ids = self.class_ids or range(len(places))
        return [ids[places[item]] for item in items]

    def _rows(self, outputs: torch.Tensor, targets: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """`(logits [elements, classes], labels [elements])` of what counts."""
        logits, labels = self._logits(outputs), self._labels(targets).to(outputs.device)
        kept = labels != self.ignore
        if bool(kept.all()):
            logits, labels = logits.reshape(-1, logits.shape[-1]), labels.reshape(-1)
        else:
            logits, labels = logits[kept], labels[kept]
        return logits.float() if logits.dtype.itemsize < 4 else logits, labels


def _shares(logits: torch.Tensor, weights: Sequence[float], counts: torch.Tensor | None) -> torch.Tensor:
    """By how much each client speaks for each class, to multiply logits `[clients, ..., classes]`, float64."""
    clients, classes = len(logits), logits.shape[-1]
    share = torch.as_tensor(weights, dtype=torch.float64, device=logits.device)[:, None].expand(-1, classes)
    if counts is not None:
        counts = torch.as_tensor(counts, dtype=torch.float64, device=logits.device)
        if counts.shape != (clients, classes):
            raise BadOption(f"class_counts {list(counts.shape)}; give [{clients}, {classes}]")
        if not torch.isfinite(counts).all() or bool((counts < 0).any()) or not bool(counts.sum() > 0):
            raise BadOption("class_counts must be finite, non-negative and not all zero")
        spoken = share * counts
        total = spoken.sum(0, keepdim=True)
        share = torch.where(total > 0, spoken / total.clamp_min(1e-300), share)  # a class nobody saw: as without
    return share.reshape(clients, *(1 for _ in range(logits.dim() - 2)), classes)


def _positions(outputs: torch.Tensor) -> tuple[int, ...]:
    """Shape of the labels of outputs `[N, classes, *positions]`."""
    return (outputs.shape[0], *outputs.shape[2:])
