"""VGG11 for 32x32 images, the convolutional network of OTFusion (Singh and Jaggi 2020), at any width."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import nn

from featalign.clients.models import LATER, ModelConfig, models, picture
from featalign.clients.training import TrainConfig
from featalign.errors import BadOption

VGG11 = (64, 0, 128, 0, 256, 256, 0, 512, 512, 0, 512, 512, 0)  # channels; 0 halves the picture


@models.register("vgg11")
@dataclass(frozen=True)
class VGGConfig(ModelConfig):
    """VGG11 (Simonyan and Zisserman 2015, configuration A) with one linear head, as OTFusion uses it on CIFAR-10.

    Attributes:
        width: factor on all channel counts.
        batch_norm: batch normalisation after every convolution.
        layer_norm: layer normalisation (over channels and positions) after every convolution.
        bias: whether convolutions and head have biases (never before a normalisation).
        size: side of the square pictures in pixels; halvings that would go below one pixel are left out.
        channels, outputs: of the pictures and of the head.
        flat: inputs are flattened grey pictures `[N, size * size]`.
    """

    width: float = 1.0
    batch_norm: bool = False
    bias: bool = True
    size: int = 32
    channels: int = 3
    outputs: int = 10
    flat: bool = field(default=False, metadata=LATER)
    layer_norm: bool = field(default=False, metadata=LATER)

    def __post_init__(self) -> None:
        if self.batch_norm and self.layer_norm:
            raise BadOption("batch_norm and layer_norm; choose one normalisation")
        if min(int(self.width * size) for size in VGG11 if size) < 1 or self.outputs < 1:
            raise BadOption(f"width {self.width}, outputs {self.outputs}: VGG11 needs a channel and an output at least")

    @classmethod
    def shaped(cls, shape: tuple[int, ...], outputs: int, **options: Any) -> VGGConfig:
        """A quarter of the width for inputs of at most 100 numbers."""
        channels, size, flat = picture(shape, cls.name)
        width = options.pop("width", 0.25 if prod(shape) <= 100 else 1.0)
        return cls(width=width, size=size, channels=channels, outputs=outputs, flat=flat, **options)

    @classmethod
    def recipe(cls, samples: int, **options: Any) -> TrainConfig:
        """Training that suits the network on two cores; four times the epochs for fewer than 10,000 samples."""
        usual: dict[str, Any] = {"epochs": 5, "batch_size": 128, "lr": 2e-3, "optimizer": "adam", "schedule": "cosine"}
        if samples < 10_000:
            usual |= {"epochs": 20, "batch_size": 32}
        return TrainConfig(**{**usual, **options})

    def module(self) -> nn.Module:
        """A freshly initialised network."""
        return VGG(self)


class VGG(nn.Module):
    """Pictures `[N, channels, size, size]` to logits: `conv1`, (`bn1`,) `act1`, (`pool1`,) ..., `head`."""

    def __init__(self, config: VGGConfig):
        super().__init__()
        self.config = config
        before, count, side = config.channels, 0, config.size
        layers: list[tuple[str, nn.Module]] = []
        if config.flat:
            layers.append(("picture", nn.Unflatten(1, (config.channels, config.size, config.size))))
        for size in VGG11:
            if size == 0:
                if side > 1:
                    # rounding up where the side is even lets coarser pictures through: their last pixel stays
                    layers.append((f"pool{count}", nn.MaxPool2d(2, ceil_mode=side % 2 == 0)))
                    side //= 2
                continue
            count += 1
            after = int(config.width * size)
            bias = config.bias and not (config.batch_norm or config.layer_norm)
            layers.append((f"conv{count}", nn.Conv2d(before, after, 3, padding=1, bias=bias)))
            if config.batch_norm:
                layers.append((f"bn{count}", nn.BatchNorm2d(after)))
            if config.layer_norm:
                layers.append((f"ln{count}", nn.GroupNorm(1, after)))
            layers.append((f"act{count}", nn.ReLU()))
            before = after
        for name, layer in layers:
            self.add_module(name, layer)
        self.head = nn.Linear(before * side**2, config.outputs, bias=config.bias)
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, nonlinearity="relu")

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Logits `[N, outputs]`."""
        x = inputs
        for name, layer in self.named_children():
            if name != "head":
                x = layer(x)
        return self.head(x.flatten(1))
