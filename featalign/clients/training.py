"""One training loop over a `Task`: no workers, the same numbers for the same seed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import nn

from featalign.clients.augmentation import augmented, halved
from featalign.data.batch import Batch, unwrap
from featalign.data.inputs import Inputs
from featalign.data.task import Task, task_of
from featalign.errors import BadOption, NotFinite
from featalign.tracking import Log

VERSION = 1  # raise it when a change here changes trained weights: cached clients are keyed by it
REPORT = 100  # steps per entry of the losses, where steps are counted instead of epochs
CHOICES = {"optimizer": ("sgd", "adam"), "schedule": ("constant", "cosine", "one-cycle")}
LATER = ("steps", "warmup", "flip", "shift", "coarse", "label_smoothing", "channels_last")
# came later: named in `to_dict` only where set, so that older caches stay valid


@dataclass(frozen=True)
class TrainConfig:
    """How a network is trained. The defaults are OTFusion's on MNIST (Singh and Jaggi 2020).

    Attributes:
        epochs, batch_size: the last batch of an epoch may be smaller; no epochs leave the network untrained.
        lr: learning rate.
        momentum: of sgd.
        weight_decay: L2 for sgd, decoupled for adam.
        optimizer: sgd or adam (AdamW).
        schedule: constant, cosine to zero over all steps, or one-cycle (linear warm-up, cosine decay; Smith 2018).
        steps: batches to train on, in place of epochs; 0 leaves the network untrained, None counts epochs.
        warmup: share of the steps in which one-cycle rises.
        flip, shift: pictures are mirrored at random, and moved by up to so many pixels in both directions.
        coarse: share of the steps, at the start, on pictures averaged down to half the side (progressive resizing),
            for networks that read pictures of any size; a quarter of the cost.
        label_smoothing: share of the target spread evenly over classes (Szegedy et al. 2016).
        channels_last: convolutions run on `[samples, height, width, channels]` in memory, which is faster on most
            processors, where all of them write a multiple of eight channels; the trained network is laid out as usual.
    """

    epochs: int = 10
    batch_size: int = 64
    lr: float = 0.01
    momentum: float = 0.5
    weight_decay: float = 0.0
    optimizer: str = "sgd"
    schedule: str = "constant"
    steps: int | None = None
    warmup: float = 0.1
    flip: bool = False
    shift: int = 0
    coarse: float = 0.0
    label_smoothing: float = 0.0
    channels_last: bool = False

    def __post_init__(self) -> None:
        for name, low in (("epochs", 0), ("batch_size", 1), ("steps", 0), ("shift", 0)):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < low):
                raise BadOption(f"{name} = {value!r}; give a whole number of at least {low}")
        for name in ("lr", "momentum", "weight_decay", "warmup", "coarse", "label_smoothing"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
                raise BadOption(f"{name} = {value!r}; give a finite number that is not negative")
        if self.lr == 0 or not 0 < self.warmup < 1:
            raise BadOption(f"lr = {self.lr}, warmup = {self.warmup}; give a positive lr and a share within (0, 1)")
        if self.coarse > 1 or self.label_smoothing >= 1:
            raise BadOption(
                f"coarse = {self.coarse}, label_smoothing = {self.label_smoothing}; give shares of at most 1, below 1"
            )
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise BadOption(f"unknown {name} '{getattr(self, name)}'; choices: {', '.join(choices)}")

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        found = {item.name: (getattr(self, item.name), item.default) for item in fields(self)}
        return {name: value for name, (value, usual) in found.items() if name not in LATER or value != usual}


def train(
    module: nn.Module,
    inputs: Any,
    targets: Any = None,
    task: Task | str | None = None,
    config: TrainConfig | None = None,
    seed: int = 0,
    progress: bool = True,
    name: str = "train",
    device: torch.device | str | None = None,
    log: Log | None = None,
) -> list[float]:
    """Train a module in place on the mean of a task's loss, and return the mean loss of each epoch.

    Args:
        inputs: whatever `Inputs.of` reads; a loader's batches are what they are.
        targets: of inputs that bring none; next-token prediction needs none.
        task: what the module is for; None is read off its outputs and the targets.
        seed: of the order of samples (and of dropout).
        progress: show a bar over epochs, labelled `name`.
        device: the module moves there and stays.
        log: called after each epoch, `log({"epoch", "loss", "lr"}, step)` (see `fa.tracking`).

    Where `config.steps` counts, an entry of the result stands for `REPORT` steps. Batches of which no target counts are
    left out. Raises `NotFinite` at the first loss, or for final weights, that are NaN or infinite, and `TaskError`
    where outputs and targets do not fit the task.
    """
    from tqdm.auto import tqdm

    config = config or TrainConfig()
    if targets is not None and hasattr(inputs, "__len__") and len(inputs) == 0:
        raise BadOption(f"'{name}' has no training samples")
    source = Inputs.of(inputs, targets)
    if device is not None:
        module.to(device)
    per_epoch = 1 if config.steps is not None else source.batches(config.batch_size)
    steps = config.epochs * per_epoch if config.steps is None else config.steps
    report = per_epoch if config.steps is None else min(REPORT, max(steps, 1))
    losses: list[float] = []
    with torch.random.fork_rng(devices=[]), _suitable_threads(module, source):
        if steps:
            task = _task(module, source, task)
        torch.manual_seed(seed)
        optimizer, schedule = _optimizer(module, config, max(steps, 1))
        draws = torch.Generator().manual_seed(seed)
        layout = _layout(module, config)
        if config.channels_last:
            _laid_out(module, layout)
        module.train()
        bar = tqdm(total=steps, desc=name, disable=not progress, leave=False)
        total, elements = 0.0, 0
        for step, batch in enumerate(_endless(source, config.batch_size, seed, steps), start=1):
            batch = _prepared(batch, config, draws, step <= config.coarse * steps, layout)
            loss, count = _step(module, batch, task, optimizer, config.label_smoothing)
            if count:
                schedule.step()
            if not math.isfinite(loss):
                raise NotFinite(_diverged(name, loss, step, config, batch))
            total, elements = total + loss * count, elements + count
            bar.update()
            if step % report == 0 or step == steps:
                if elements:
                    losses.append(total / elements)
                    bar.set_postfix(loss=f"{losses[-1]:.4f}")
                    if log is not None:
                        rate = float(schedule.get_last_lr()[0])
                        log({"epoch": len(losses), "loss": losses[-1], "lr": rate}, step)
                total, elements = 0.0, 0
        bar.close()
    module.eval()
    if config.channels_last:
        _laid_out(module, torch.contiguous_format)
    check_finite(module, name)
    return losses


def _task(module: nn.Module, source: Inputs, task: Task | str | None) -> Task:
    """The task, checked against the module's outputs on the first samples."""
    example = source.example(2)
    module.eval()
    with torch.no_grad():
        outputs = unwrap(example.run(module))
    return task_of(task, outputs, example)


def _layout(module: nn.Module, config: TrainConfig) -> torch.memory_format:
    """How four-dimensional tensors lie in memory while the module trains.

    oneDNN corrupts memory on some processors where convolutions with few channels run channels last.
    """
    narrow = any(isinstance(part, nn.Conv2d) and part.out_channels % 8 for part in module.modules())
    return torch.channels_last if config.channels_last and not narrow else torch.contiguous_format


def _laid_out(module: nn.Module, layout: torch.memory_format) -> None:
    """Move the four-dimensional tensors of a module to a layout, in place."""
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.dim() == 4:
            tensor.data = tensor.data.contiguous(memory_format=layout)


def _prepared(
    batch: Batch, config: TrainConfig, draws: torch.Generator, coarse: bool, layout: torch.memory_format
) -> Batch:
    """The batch as the network sees it in training."""
    batch = augmented(batch, config.flip, config.shift, draws)
    if coarse:
        batch = halved(batch)
    if config.channels_last:
        batch = batch.map(lambda t: t.contiguous(memory_format=layout) if t.dim() == 4 else t)
    return batch


def _step(
    module: nn.Module, batch: Batch, task: Any, optimizer: torch.optim.Optimizer, smoothing: float = 0.0
) -> tuple[float, int]:
    """Loss of a batch and the elements it is the mean of; nothing moves where none counts."""
    try:
        outputs = unwrap(batch.run(module))
    except ValueError as error:
        if batch.size == 1 and "more than 1 value per channel" in str(error):
            return 0.0, 0  # a left-over sample alone has no batch statistics
        raise
    targets = task.targets(batch)
    values = task.smoothed_loss(outputs, targets, smoothing) if smoothing else task.loss(outputs, targets)
    if values.numel() == 0:
        return 0.0, 0
    loss = values.mean()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.item(), values.numel() if values.dim() else batch.size


def _endless(source: Inputs, batch_size: int, seed: int, steps: int) -> Iterator[Batch]:
    """So many batches, from as many passes as that takes."""
    generator = torch.Generator().manual_seed(seed)
    done = 0
    while done < steps:
        before = done
        for batch in source.epoch(batch_size, generator):
            yield batch
            done += 1
            if done == steps:
                return
        if done == before:
            raise BadOption("the training inputs gave no batch; pass a loader that can be iterated again")


def _diverged(name: str, loss: float, step: int, config: TrainConfig, batch: Batch) -> str:
    largest = max((float(t.abs().max()) for t in batch.tensors if t.is_floating_point() and t.numel()), default=0.0)
    return (
        f"loss of '{name}' is {loss} at step {step} (lr {config.lr:g}, largest input {largest:.3g}); lower the "
        "learning rate, scale the inputs, or leave the client out"
    )


@contextmanager
def _suitable_threads(module: nn.Module, source: Inputs) -> Iterator[None]:
    """One thread while a network of plain linear layers trains on float inputs, restored after.

    Its steps last a few milliseconds: more threads gain little on a quiet machine, cost a factor of twenty when
    another process holds a core, and make the weights depend on the number of cores.
    """
    threads = torch.get_num_threads()
    floating = all(tensor.is_floating_point() for tensor in source.example(1).tensors)
    if floating and all(parameter.dim() <= 2 for parameter in module.parameters()):
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
    if config.schedule == "one-cycle":
        return optimizer, torch.optim.lr_scheduler.OneCycleLR(
            optimizer, config.lr, steps, pct_start=config.warmup, cycle_momentum=config.optimizer == "adam"
        )
    return optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)


def check_finite(module: nn.Module, name: str) -> None:
    """Raise `NotFinite` when a parameter of the module holds NaN, infinity or nothing; buffers (masks) may."""
    for key, tensor in module.named_parameters():
        if tensor.is_meta:
            raise NotFinite(
                f"'{key}' of client '{name}' is on the meta device and holds no numbers; load the weights first"
            )
        if not torch.isfinite(tensor).all():
            raise NotFinite(
                f"'{key}' {list(tensor.shape)} of client '{name}' holds NaN or infinity; "
                "train it with a lower learning rate, or leave the client out"
            )
