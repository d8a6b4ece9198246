"""CIFAR-10 with VGG11 and ResNet20: what one-shot fusion keeps of two separately trained convolutional networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from featalign.errors import BadOption

if TYPE_CHECKING:
    from featalign.clients.client import Client
    from featalign.data.datasets import Dataset

WIDTHS = {"vgg11": 0.25, "resnet20": 0.5}


def pictures(name: str = "cifar10", resolution: int = 16) -> Dataset:
    """An image data set, averaged down to `resolution` pixels a side so that convolutions train on two cores."""
    from torch.nn import functional as F

    from featalign import data

    dataset = data.load(name)
    side = dataset.input_shape[-1]
    if side % resolution:
        raise BadOption(f"resolution {resolution} does not divide the {side} pixels of '{name}'")
    if side == resolution:
        return dataset
    factor = side // resolution
    return replace(
        dataset,
        name=f"{name}-{resolution}px",
        train_inputs=F.avg_pool2d(dataset.train_inputs, factor),
        test_inputs=F.avg_pool2d(dataset.test_inputs, factor),
    )


def parents(
    model: str, dataset: Dataset, width: float | None = None, seed: int = 0, progress: bool = True, **options: Any
) -> list[Client]:
    """Two networks from different initialisations, each trained on its own half of the data set (cached).

    `options` are those of the model's configuration. Seed s takes the initialisations 2 s and 2 s + 1.
    """
    from featalign.clients import models, train_clients
    from featalign.data import partition

    kind: Any = models[model]
    config = kind.for_dataset(dataset, width=WIDTHS.get(model, 1.0) if width is None else width, **options)
    halves = partition(dataset.train_labels, "iid", 2, seed, dataset.class_names)
    clients = []
    for k in range(2):
        half = replace(halves, indices=halves.indices[k : k + 1], counts=halves.counts[k : k + 1])
        clients += train_clients(dataset, half, config, kind.recipe(), 2 * seed + k, progress)
    return clients


def train(architectures: Sequence[str], resolution: int = 16, seed: int = 0) -> None:
    """Train (or load) all parents of a comparison."""
    dataset = pictures(resolution=resolution)
    for model in architectures:
        parents(model, dataset, seed=seed)
