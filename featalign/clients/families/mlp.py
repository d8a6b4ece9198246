"""OTFusion's multilayer perceptron, by its configuration."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

from torch import nn

from featalign.clients.models import ACTIVATIONS, ModelConfig, models
from featalign.clients.training import TrainConfig
from featalign.errors import BadOption


@models.register("mlp")
@dataclass(frozen=True)
class MLPConfig(ModelConfig):
    """OTFusion's multilayer perceptron: 784-400-200-100-10 without biases (Singh and Jaggi 2020).

    Attributes:
        inputs: numbers in one input; inputs of any shape are flattened.
        hidden: widths of the hidden layers.
        outputs: classes, labels or regressed numbers; one logit stands for two classes.
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
    def shaped(cls, shape: tuple[int, ...], outputs: int, **options: Any) -> MLPConfig:
        """Widths of OTFusion, or 64-32 for inputs of at most 100 numbers such as digits."""
        inputs = prod(shape)
        hidden = options.pop("hidden", (64, 32) if inputs <= 100 else (400, 200, 100))
        return cls(inputs=inputs, hidden=hidden, outputs=outputs, **options)

    @classmethod
    def recipe(cls, samples: int, **options: Any) -> TrainConfig:
        """OTFusion's on MNIST; more and larger steps for fewer than 10,000 samples, such as digits."""
        if samples < 10_000:
            options = {"epochs": 60, "batch_size": 32, "lr": 0.05, "momentum": 0.9, **options}
        return TrainConfig(**options)

    def module(self) -> nn.Module:
        """A freshly initialised `featalign.clients.MLP`."""
        from featalign.clients.families.hooked_mlp import MLP  # transformer_lens, behind it, takes seconds to import

        return MLP(self.inputs, self.hidden, self.outputs, self.bias, ACTIVATIONS[self.activation])
