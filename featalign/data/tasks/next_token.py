"""The next token of a sequence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from featalign.data.batch import Batch
from featalign.data.task import IGNORED, TASKS, Metric, Task
from featalign.data.tasks.classification import Classification
from featalign.errors import TaskError


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
    heads: ClassVar[tuple[str, ...]] = ("log-mixture", "mean-logits", "cross-entropy")
    fitted_heads: ClassVar[tuple[str, ...]] = ("cross-entropy",)

    @classmethod
    def guess(cls, outputs: torch.Tensor, batch: Batch) -> Task | None:
        """Tokens in, `[N, T, vocabulary]` out, and no targets but the tokens themselves."""
        tokens = batch.tokens
        if tokens is None or outputs.dim() != 3 or outputs.shape[:2] != tokens.shape:
            return None
        return cls() if batch.targets is None or batch.self_labelled else None

    def outputs_for(self, batch: Batch) -> int:
        """The largest token + 1."""
        targets = self.targets(batch)
        tokens = batch.tokens
        return 1 + int(targets.max() if tokens is None else max(tokens.max(), targets.max()))

    def targets(self, batch: Batch) -> torch.Tensor:
        """`[N, T]`: given ones, aligned with the outputs, or the inputs moved by one with nothing after the last.

        Labels that are the input tokens themselves (as `transformers` wants them) are moved too. Raises `TaskError`
        where neither targets nor tokens are there.
        """
        tokens = batch.tokens
        if batch.targets is not None and not batch.self_labelled:
            return batch.targets
        if tokens is None:
            raise TaskError("task 'next-token' needs integer tokens [N, T] as inputs (or 'input_ids', or targets)")
        source = tokens if batch.targets is None else batch.targets
        moved = torch.full_like(source, self.ignore)
        moved[:, :-1] = source[:, 1:]
        mask = batch.mask
        if mask is not None:
            moved[:, :-1][~(mask[:, 1:] & mask[:, :-1]).to(moved.device)] = self.ignore
        return moved

    def check(self, outputs: torch.Tensor, targets: Any) -> None:
        shape = list(getattr(targets, "shape", ()))
        if outputs.dim() != 3 or shape != list(outputs.shape[:2]):
            raise TaskError(
                f"outputs {list(outputs.shape)} and tokens {shape}: next-token prediction wants "
                "[N, T, vocabulary] and [N, T]"
            )
        Classification(ignore=self.ignore).check(outputs, targets)

    def loss(self, outputs: torch.Tensor, targets: Any) -> torch.Tensor:
        return Classification(ignore=self.ignore).loss(outputs, targets)

    def smoothed_loss(self, outputs: torch.Tensor, targets: Any, share: float) -> torch.Tensor:
        return Classification(ignore=self.ignore).smoothed_loss(outputs, targets, share)

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
        temper: float = 1.0,
    ) -> torch.Tensor:
        return Classification().head_target(outputs, weights, counts, head, temper)

    def divergence(self, outputs: torch.Tensor, ensemble: torch.Tensor) -> torch.Tensor:
        return Classification().divergence(outputs, ensemble)

    def head_loss(self, outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return Classification().head_loss(outputs, target)
