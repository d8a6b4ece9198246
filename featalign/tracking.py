"""Metrics of long runs, handed to whatever keeps them: one callback, `log(metrics, step)`.

>>> fa.dictionaries.train(acts, log=fa.tracking.to_wandb(wandb.init(project="features")))
>>> fa.dictionaries.train(acts, log=fa.tracking.to_tensorboard(SummaryWriter("runs/a")))
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["prefixed", "to_tensorboard", "to_wandb"]

Log = Callable[[dict[str, float], int], None]


def to_wandb(run: Any) -> Log:
    """A callback that files metrics with a Weights & Biases run (what `wandb.init` returns)."""
    return lambda metrics, step: run.log(metrics, step=step)


def to_tensorboard(writer: Any) -> Log:
    """A callback that files metrics with a TensorBoard `SummaryWriter`, one scalar each."""

    def log(metrics: dict[str, float], step: int) -> None:
        for name, value in metrics.items():
            writer.add_scalar(name, value, global_step=step)

    return log


def prefixed(log: Log | None, name: str) -> Log | None:
    """The same callback with `name/` before every metric; None stays None."""
    if log is None or not name:
        return log
    return lambda metrics, step: log({f"{name}/{key}": value for key, value in metrics.items()}, step)
