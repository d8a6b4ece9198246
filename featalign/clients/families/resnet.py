"""ResNet20 and ResNet18 for small images (He et al. 2016), at any width and with any normalisation."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import Any, Self

import torch
from torch import nn

from featalign.clients.models import LATER, ModelConfig, models, picture
from featalign.clients.training import TrainConfig
from featalign.errors import BadOption

STAGES = {"resnet20": ((16, 32, 64), 3), "resnet18": ((64, 128, 256, 512), 2)}  # channels per stage, blocks per stage


@dataclass(frozen=True)
class _ResNetConfig(ModelConfig):
    """Shared options of the residual networks.

    Attributes:
        width: factor on all channel counts.
        norm: "batch", "layer" (over channels and positions, as git re-basin trains) or "none".
        channels, outputs: of the pictures and of the head.
        side: of flattened grey pictures `[N, side * side]`; 0 for pictures that come as such.
    """

    width: float = 1.0
    norm: str = "batch"
    channels: int = 3
    outputs: int = 10
    side: int = field(default=0, metadata=LATER)

    def __post_init__(self) -> None:
        if self.norm not in ("batch", "layer", "none"):
            raise BadOption(f"unknown norm '{self.norm}'; choices: batch, layer, none")
        if int(self.width * self.stages[0]) < 1 or self.outputs < 1:
            raise BadOption(f"width {self.width}, outputs {self.outputs}: a channel and an output at least")

    @property
    def stages(self) -> tuple[int, ...]:
        """Channels per stage at width one."""
        return STAGES[self.name][0]

    @classmethod
    def shaped(cls, shape: tuple[int, ...], outputs: int, **options: Any) -> Self:
        """A quarter of the width for inputs of at most 100 numbers."""
        channels, side, flat = picture(shape, cls.name)
        width = options.pop("width", 0.25 if prod(shape) <= 100 else 1.0)
        return cls(width=width, channels=channels, outputs=outputs, side=side if flat else 0, **options)

    def module(self) -> nn.Module:
        """A freshly initialised network."""
        return ResNet(self)

    @classmethod
    def recipe(cls, samples: int, **options: Any) -> TrainConfig:
        """Training that suits the network on two cores; more and smaller steps for fewer than 10,000 samples."""
        usual: dict[str, Any] = {
            **{"epochs": 4, "batch_size": 128, "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4},
            "schedule": "cosine",
        }
        if samples < 10_000:
            usual |= {"epochs": 20, "batch_size": 32, "lr": 0.05}
        return TrainConfig(**{**usual, **options})


@models.register("resnet20")
@dataclass(frozen=True)
class ResNet20Config(_ResNetConfig):
    """ResNet20: three stages of three basic blocks, 16 to 64 channels at width 1."""


@models.register("resnet18")
@dataclass(frozen=True)
class ResNet18Config(_ResNetConfig):
    """ResNet18 with a 3x3 stem: four stages of two basic blocks, 64 to 512 channels at width 1."""


def normalisation(kind: str, channels: int) -> nn.Module:
    """The normalisation of a kind over `[N, channels, H, W]`."""
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    return nn.GroupNorm(1, channels) if kind == "layer" else nn.Identity()


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a skip; a strided or widening skip is a 1x1 convolution."""

    def __init__(self, before: int, after: int, stride: int, norm: str):
        super().__init__()
        bias = norm == "none"
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=bias)
        self.norm1 = normalisation(norm, after)
        self.act1 = nn.ReLU()
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=bias)
        self.norm2 = normalisation(norm, after)
        self.skip: nn.Module = nn.Identity()
        if stride != 1 or before != after:
            self.skip = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=bias), normalisation(norm, after))
        self.sum = nn.Identity()  # a place to read the stream before its nonlinearity
        self.act2 = nn.ReLU()
        if norm == "none":
            nn.init.zeros_(self.conv2.weight)  # without normalisation deep residual networks start from the identity

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """`[N, after, H / stride, W / stride]`."""
        x = self.act1(self.norm1(self.conv1(inputs)))
        x = self.norm2(self.conv2(x))
        return self.act2(self.sum(x + self.skip(inputs)))


class ResNet(nn.Module):
    """Pictures `[N, channels, H, W]` to logits: `stem`, `stages.<stage>.<block>`, `head`."""

    def __init__(self, config: _ResNetConfig):
        super().__init__()
        self.config = config
        sizes = [int(config.width * size) for size in config.stages]
        depth = STAGES[config.name][1]
        if config.side:
            self.picture = nn.Unflatten(1, (config.channels, config.side, config.side))
        self.stem = nn.Conv2d(config.channels, sizes[0], 3, 1, 1, bias=config.norm == "none")
        self.norm = normalisation(config.norm, sizes[0])
        self.act = nn.ReLU()
        stages, before = [], sizes[0]
        for index, size in enumerate(sizes):
            blocks = []
            for block in range(depth):
                blocks.append(BasicBlock(before, size, 2 if index and not block else 1, config.norm))
                before = size
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(before, config.outputs)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Logits `[N, outputs]`."""
        if self.config.side:
            inputs = self.picture(inputs)
        x = self.stages(self.act(self.norm(self.stem(inputs))))
        return self.head(self.pool(x).flatten(1))
