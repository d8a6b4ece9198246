"""VGG11 for 32x32 images, the convolutional network of OTFusion (Singh and Jaggi 2020), at any width."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from featalign.clients.models import models
from featalign.clients.training import TrainConfig
from featalign.errors import BadOption

if TYPE_CHECKING:
    from featalign.data.datasets import Dataset

VGG11 = (64, 0, 128, 0, 256, 256, 0, 512, 512, 0, 512, 512, 0)  # channels; 0 halves the picture


@models.register("vgg11")
@dataclass(frozen=True)
class VGGConfig:
    """VGG11 (Simonyan and Zisserman 2015, configuration A) with one linear head, as OTFusion uses it on CIFAR-10.

    Attributes:
        width: factor on all channel counts.
        batch_norm: batch normalisation after every convolution.
        bias: whether convolutions and head have biases (never before a batch normalisation).
        size: side of the square pictures in pixels; halvings that would go below one pixel are left out.
        channels, outputs: of the pictures and of the head.
    """

    width: float = 1.0
    batch_norm: bool = False
    bias: bool = True
    size: int = 32
    channels: int = 3
    outputs: int = 10

    def __post_init__(self) -> None:
        if min(int(self.width * size) for size in VGG11 if size) < 1 or self.outputs < 1:
            raise BadOption(f"width {self.width}, outputs {self.outputs}: VGG11 needs a channel and an output at least")

    @classmethod
    def for_dataset(cls, dataset: Dataset, **options: Any) -> VGGConfig:
        """Channels and classes of the data set."""
        channels, size, _ = dataset.input_shape
        return cls(size=size, channels=channels, outputs=dataset.classes, **options)

    @staticmethod
    def recipe(**options: Any) -> TrainConfig:
        """Training that suits the network on two cores."""
        return TrainConfig(
            **{"epochs": 5, "batch_size": 128, "lr": 2e-3, "optimizer": "adam", "schedule": "cosine", **options}
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values with the registered name under `model`."""
        return {"model": "vgg11", **asdict(self)}

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
        for size in VGG11:
            if size == 0:
                if side > 1:
                    layers.append((f"pool{count}", nn.MaxPool2d(2)))
                    side //= 2
                continue
            count += 1
            after = int(config.width * size)
            bias = config.bias and not config.batch_norm
            layers.append((f"conv{count}", nn.Conv2d(before, after, 3, padding=1, bias=bias)))
            if config.batch_norm:
                layers.append((f"bn{count}", nn.BatchNorm2d(after)))
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
