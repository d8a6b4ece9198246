"""Architectures by name. A configuration is cheap to make; the module behind it is imported when it is built.

A family of one's own is one file: a frozen dataclass with `shaped` and `module`, registered under a name.

>>> @clients.models.register("wide")
... @dataclass(frozen=True)
... class WideConfig(clients.ModelConfig):
...     inputs: int = 64
...     outputs: int = 10
...     @classmethod
...     def shaped(cls, shape, outputs, **options): return cls(prod(shape), outputs, **options)
...     def module(self): return nn.Sequential(nn.Flatten(), nn.Linear(self.inputs, self.outputs))
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from math import isqrt
from typing import Any, ClassVar, Self

import torch
from torch import nn

from featalign.clients.training import TrainConfig
from featalign.data.batch import Batch
from featalign.data.datasets import Dataset
from featalign.data.task import Task
from featalign.errors import BadOption
from featalign.registry import Registry

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "identity": nn.Identity,
}
LATER = {
    "left out at its default": True
}  # metadata of options that came later, so that clients cached before stay valid


class Models(Registry[type["ModelConfig"]]):
    """Families by name; a registered configuration knows its name."""

    def register(self, name: str) -> Any:
        file = super().register(name)

        def named(kind: type[ModelConfig]) -> type[ModelConfig]:
            kind.name = name
            return file(kind)

        return named


class ModelConfig:
    """Base of registered configurations: frozen dataclasses of plain values."""

    name: ClassVar[str] = ""

    @classmethod
    def shaped(cls, shape: tuple[int, ...], outputs: int, **options: Any) -> Self:
        """The configuration for inputs `[N, *shape]` and so many outputs; raises `BadOption` for others."""
        raise NotImplementedError

    def module(self) -> nn.Module:
        """A freshly initialised module, from torch's current random state."""
        raise NotImplementedError

    @classmethod
    def recipe(cls, samples: int, **options: Any) -> TrainConfig:
        """Training that suits the family, on so many samples; `options` are those of `TrainConfig`."""
        return TrainConfig(**options)

    @classmethod
    def for_task(cls, example: Batch, task: Task, **options: Any) -> Self:
        """The configuration that suits a batch of inputs, with the outputs that the task needs for its targets."""
        outputs = options.pop("outputs", None) or task.outputs_for(example)
        return cls.shaped(tuple(example.tensors[0].shape[1:]), outputs, **options)

    @classmethod
    def for_dataset(cls, dataset: Dataset, **options: Any) -> Self:
        """The configuration that suits a data set and its task."""
        return cls.for_task(Batch((dataset.train_inputs,), {}, dataset.train_labels), dataset.task, **options)

    def to_dict(self) -> dict[str, Any]:
        """Plain values with the registered name under `model`."""
        return {"model": self.name, **plain_fields(self)}


models: Models = Models("model")


def plain_fields(config: Any) -> dict[str, Any]:
    """Fields of a configuration, tuples as lists; options that came later only where they are set."""
    found = {}
    for item in fields(config):
        value = getattr(config, item.name)
        if item.metadata != LATER or value != item.default:
            found[item.name] = list(value) if isinstance(value, tuple) else value
    return found


def build(config: ModelConfig, seed: int = 0) -> nn.Module:
    """The module of a configuration, initialised from the seed; torch's global random state is left as it was.

    `config_of` tells the configuration of what is built here, and of its copies.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = config.module()
    module.__dict__["_family"] = config
    return module


def config_of(module: nn.Module) -> ModelConfig | None:
    """The configuration that `build` made a module of; None for modules from elsewhere."""
    return module.__dict__.get("_family")


def from_dict(content: Mapping[str, Any]) -> Any:
    """The configuration that `to_dict` wrote.

    Raises `UnknownName` for a model that is not registered and `BadOption` for an option that it does not have.
    """
    options = dict(content)
    kind: Any = models[options.pop("model", "mlp")]
    known = {item.name for item in fields(kind)}
    if unknown := sorted(set(options) - known):
        raise BadOption(f"model '{content.get('model', 'mlp')}' has no option '{unknown[0]}'; options: {sorted(known)}")
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in options.items()})


def picture(shape: tuple[int, ...], name: str) -> tuple[int, int, bool]:
    """`(channels, side, flat)` of square pictures `[channels, side, side]`, or of flattened grey ones.

    Raises `BadOption` for anything else.
    """
    if len(shape) == 3 and shape[1] == shape[2]:
        return shape[0], shape[1], False
    if len(shape) == 1 and isqrt(shape[0]) ** 2 == shape[0]:
        return 1, isqrt(shape[0]), True
    raise BadOption(f"model '{name}' reads square pictures, not inputs of shape {list(shape)}; use model 'mlp'")
