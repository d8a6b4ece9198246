"""Architectures by name. A configuration is cheap to make; the module behind it is imported when it is built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from featalign.errors import BadOption
from featalign.registry import Registry

if TYPE_CHECKING:
    from featalign.data.datasets import Dataset

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "identity": nn.Identity,
}


class ModelConfig(Protocol):
    """What a registered configuration offers: the frozen dataclass, its dictionary form and the module."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values with the registered name under `model`."""
        ...

    def module(self) -> nn.Module:
        """A freshly initialised module, from torch's current random state."""
        ...


models: Registry[type] = Registry("model")


@models.register("mlp")
@dataclass(frozen=True)
class MLPConfig:
    """OTFusion's multilayer perceptron: 784-400-200-100-10 without biases (Singh and Jaggi 2020).

    Attributes:
        inputs: numbers in one input; inputs of any shape are flattened.
        hidden: widths of the hidden layers.
        outputs: classes.
        bias: whether the layers have biases.
        activation: relu, gelu, silu, tanh or identity.
    """

    inputs: int = 784
    hidden: tuple[int, ...] = (400, 200, 100)
    outputs: int = 10
    bias: bool = False
    activation: str = "relu"

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden", tuple(self.hidden))
        widths = (self.inputs, *self.hidden, self.outputs)
        if min(widths) < 1:
            raise BadOption(f"MLP widths {widths}; each must be at least 1")
        if self.activation not in ACTIVATIONS:
            raise BadOption(f"unknown activation '{self.activation}'; choices: {', '.join(ACTIVATIONS)}")

    @classmethod
    def for_dataset(cls, dataset: Dataset, **options: Any) -> MLPConfig:
        """Widths that suit the data set: OTFusion's, or 64-32 for inputs of at most 100 numbers such as digits."""
        hidden = options.pop("hidden", (64, 32) if dataset.features <= 100 else (400, 200, 100))
        return cls(inputs=dataset.features, hidden=hidden, outputs=dataset.classes, **options)

    def to_dict(self) -> dict[str, Any]:
        """Plain values with the registered name under `model`."""
        return {"model": "mlp", **asdict(self), "hidden": list(self.hidden)}

    def module(self) -> nn.Module:
        """A freshly initialised `featalign.clients.mlp.MLP`."""
        from featalign.clients.mlp import MLP  # transformer_lens, behind it, takes seconds to import

        return MLP(self)


def build(config: ModelConfig, seed: int = 0) -> nn.Module:
    """The module of a configuration, initialised from the seed; torch's global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return config.module()


def from_dict(content: Mapping[str, Any]) -> Any:
    """The configuration that `to_dict` wrote.

    Raises `UnknownName` for a model that is not registered and `BadOption` for an option that it does not have.
    """
    options = dict(content)
    kind = models[options.pop("model", "mlp")]
    known = {item.name for item in fields(kind)}
    if unknown := sorted(set(options) - known):
        raise BadOption(f"model '{content.get('model', 'mlp')}' has no option '{unknown[0]}'; options: {sorted(known)}")
    return kind(**options)
