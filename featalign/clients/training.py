"""Training on tensors in memory: no loaders, no workers, the same numbers for the same seed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from featalign.errors import BadOption, NotFinite

if TYPE_CHECKING:
    from featalign.data.datasets import Dataset

VERSION = 1  # raise it when a change here changes trained weights: cached clients are keyed by it


@dataclass(frozen=True)
class TrainConfig:
    """How a client is trained with cross-entropy. The defaults are OTFusion's on MNIST (Singh and Jaggi 2020).

    Attributes:
        epochs, batch_size: the last batch of an epoch may be smaller.
        lr: learning rate.
        momentum: of sgd.
        weight_decay: L2 for sgd, decoupled for adam.
        optimizer: sgd or adam (AdamW).
        schedule: constant, or cosine to zero over all steps.
    """

    epochs: int = 10
    batch_size: int = 64
    lr: float = 0.01
    momentum: float = 0.5
    weight_decay: float = 0.0
    optimizer: str = "sgd"
    schedule: str = "constant"

    def __post_init__(self) -> None:
        if self.epochs < 0 or self.batch_size < 1 or not self.lr > 0:
            raise BadOption(f"epochs {self.epochs}, batch size {self.batch_size}, lr {self.lr}: out of range")
        if self.optimizer not in ("sgd", "adam"):
            raise BadOption(f"unknown optimizer '{self.optimizer}'; choices: sgd, adam")
        if self.schedule not in ("constant", "cosine"):
            raise BadOption(f"unknown schedule '{self.schedule}'; choices: constant, cosine")

    @classmethod
    def for_dataset(cls, dataset: Dataset, **options: Any) -> TrainConfig:
        """The recipe that suits the data set: OTFusion's for the large ones, more and larger steps for digits."""
        if len(dataset.train_labels) < 10_000:
            options = {"epochs": 60, "batch_size": 32, "lr": 0.05, "momentum": 0.9, **options}
        return cls(**options)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def train(
    module: nn.Module,
    inputs: torch.Tensor,
    labels: torch.Tensor,
    config: TrainConfig | None = None,
    seed: int = 0,
    progress: bool = True,
    name: str = "train",
) -> list[float]:
    """Train a module in place and return the mean loss of each epoch.

    Args:
        module: logits `[N, classes]` from `inputs [N, ...]`.
        labels: `[N]` int64.
        seed: of the order of samples (and of dropout).
        progress: show a bar over epochs, labelled `name`.

    Raises `NotFinite` when the weights end as NaN or infinity.
    """
    from tqdm.auto import trange

    config = config or TrainConfig()
    if len(inputs) == 0:
        raise BadOption(f"'{name}' has no training samples")
    steps = config.epochs * -(-len(inputs) // config.batch_size)
    optimizer, schedule = _optimizer(module, config, max(steps, 1))
    generator = torch.Generator().manual_seed(seed)
    losses = []
    module.train()
    epochs = trange(config.epochs, desc=name, disable=not progress, leave=False)
    with torch.random.fork_rng(devices=[]), _suitable_threads(module, inputs), epochs as bar:
        torch.manual_seed(seed)
        for _ in bar:
            total = 0.0
            for chosen in torch.randperm(len(inputs), generator=generator).split(config.batch_size):
                loss = nn.functional.cross_entropy(module(inputs[chosen]), labels[chosen])
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                schedule.step()
                total += loss.item() * len(chosen)
            losses.append(total / len(inputs))
            bar.set_postfix(loss=f"{losses[-1]:.4f}")
    module.eval()
    check_finite(module, name)
    return losses


@contextmanager
def _suitable_threads(module: nn.Module, inputs: torch.Tensor) -> Iterator[None]:
    """One thread while a network of plain linear layers trains on float inputs, restored after.

    Its steps last a few milliseconds: more threads gain little on a quiet machine, cost a factor of twenty when
    another process holds a core, and make the weights depend on the number of cores.
    """
    threads = torch.get_num_threads()
    if inputs.is_floating_point() and all(parameter.dim() <= 2 for parameter in module.parameters()):
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _optimizer(
    module: nn.Module, config: TrainConfig, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    parameters = list(module.parameters())
    optimizer: torch.optim.Optimizer
    if config.optimizer == "adam":
        optimizer = torch.optim.AdamW(parameters, lr=config.lr, weight_decay=config.weight_decay)
    else:
        optimizer = torch.optim.SGD(
            parameters, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
        )
    if config.schedule == "cosine":
        return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    return optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)


def check_finite(module: nn.Module, name: str) -> None:
    """Raise `NotFinite` when a parameter or buffer of the module holds NaN or infinity."""
    for key, tensor in module.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise NotFinite(
                f"'{key}' {list(tensor.shape)} of client '{name}' holds NaN or infinity; "
                "train it with a lower learning rate, or leave the client out"
            )


def logits(module: nn.Module, inputs: torch.Tensor, batch_size: int = 4096) -> torch.Tensor:
    """Outputs `[N, classes]` in eval mode, without gradients; the module's training flag is restored."""
    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            return torch.cat([module(batch) for batch in inputs.split(batch_size)])
    finally:
        module.train(training)


def accuracy(module: nn.Module, inputs: torch.Tensor, labels: torch.Tensor, batch_size: int = 4096) -> float:
    """Share of inputs `[N, ...]` whose largest logit is the label `[N]`, in [0, 1]."""
    return (logits(module, inputs, batch_size).argmax(1) == labels).double().mean().item()
