"""A dilated residual network over sequences, with several outputs per position or one set per sequence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from featalign.clients.models import ModelConfig, models
from featalign.clients.training import TrainConfig
from featalign.data.batch import Batch
from featalign.data.task import Task
from featalign.errors import BadOption


@models.register("conv1d")
@dataclass(frozen=True)
class Conv1dConfig(ModelConfig):
    """Groups of pre-activation residual blocks of dilated convolutions, as in SpliceAI (Jaganathan et al. 2019).

    Every group hands its stream, through a convolution of width one, to a sum that the readout reads. SpliceAI-10k has
    kernels 11, 11, 21, 41, dilations 1, 4, 10, 25, four blocks per group and width 32.

    Attributes:
        channels, outputs: of the inputs `[N, channels, length]` and of the readout, per position.
        width: channels of the stream.
        kernels, dilations: one per group; kernels are odd.
        blocks: per group.
        pool: outputs `[N, outputs]` from the mean over positions, instead of `[N, outputs, length]`.
        flat: inputs are `[N, length]`, one channel.
    """

    channels: int = 4
    outputs: int = 3
    width: int = 16
    kernels: tuple[int, ...] = (11, 11)
    dilations: tuple[int, ...] = (1, 4)
    blocks: int = 2
    pool: bool = False
    flat: bool = False

    def __post_init__(self) -> None:
        for name in ("kernels", "dilations"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if len(self.kernels) != len(self.dilations) or not self.kernels:
            raise BadOption(f"kernels {self.kernels} and dilations {self.dilations}: one of each per group")
        if any(kernel % 2 == 0 or kernel < 1 for kernel in self.kernels) or min(self.dilations) < 1:
            raise BadOption(f"kernels {self.kernels}, dilations {self.dilations}: odd kernels, dilations of at least 1")
        if min(self.channels, self.outputs, self.width, self.blocks) < 1:
            raise BadOption(
                f"channels {self.channels}, outputs {self.outputs}, width {self.width}, blocks {self.blocks}: "
                "each at least 1"
            )

    @classmethod
    def shaped(cls, shape: tuple[int, ...], outputs: int, **options: Any) -> Conv1dConfig:
        """One set of outputs per sequence unless `pool=False` is passed; raises `BadOption` for inputs of more axes."""
        if len(shape) not in (1, 2):
            raise BadOption(f"model '{cls.name}' reads [channels, length], not inputs of shape {list(shape)}")
        channels = shape[0] if len(shape) == 2 else 1
        return cls(**{"channels": channels, "outputs": outputs, "pool": True, "flat": len(shape) == 1, **options})

    @classmethod
    def for_task(cls, example: Batch, task: Task, **options: Any) -> Conv1dConfig:
        """Outputs per position where the targets have positions, as many as the inputs."""
        shape, wanted = example.tensors[0].shape, getattr(example.targets, "shape", ())
        return super().for_task(example, task, **{"pool": shape[-1] not in wanted[1:], **options})

    @classmethod
    def recipe(cls, samples: int, **options: Any) -> TrainConfig:
        """AdamW with warm-up."""
        usual: dict[str, Any] = {"epochs": 10, "batch_size": 32, "lr": 3e-3, "optimizer": "adam"}
        return TrainConfig(**{**usual, "schedule": "one-cycle", **options})

    def module(self) -> nn.Module:
        """A freshly initialised network."""
        return Conv1dNet(self)


class Conv1dBlock(nn.Module):
    """Pre-activation block: twice batch normalisation, nonlinearity and dilated convolution, beside a skip."""

    def __init__(self, width: int, kernel: int, dilation: int):
        super().__init__()
        padding = dilation * (kernel - 1) // 2
        self.bn1, self.bn2 = nn.BatchNorm1d(width), nn.BatchNorm1d(width)
        self.act1, self.act2 = nn.ReLU(), nn.ReLU()
        self.conv1 = nn.Conv1d(width, width, kernel, padding=padding, dilation=dilation)
        self.conv2 = nn.Conv1d(width, width, kernel, padding=padding, dilation=dilation)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[N, width, length]` to the same shape."""
        h = self.conv1(self.act1(self.bn1(x)))
        return x + self.conv2(self.act2(self.bn2(h)))


class Conv1dNet(nn.Module):
    """`[N, channels, length]` to `[N, outputs, length]`: `stem`, `groups.<g>.<block>`, `taps.<g>`, `head`."""

    def __init__(self, config: Conv1dConfig):
        super().__init__()
        self.config = config
        self.stem = nn.Conv1d(config.channels, config.width, 1)
        self.first = nn.Conv1d(config.width, config.width, 1)
        groups = zip(config.kernels, config.dilations)
        self.groups = nn.ModuleList(
            nn.Sequential(*(Conv1dBlock(config.width, kernel, dilation) for _ in range(config.blocks)))
            for kernel, dilation in groups
        )
        self.taps = nn.ModuleList(nn.Conv1d(config.width, config.width, 1) for _ in config.kernels)
        self.head = nn.Conv1d(config.width, config.outputs, 1)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Outputs per position `[N, outputs, length]`, or `[N, outputs]` where they are pooled."""
        x = self.stem(inputs.unsqueeze(1) if self.config.flat else inputs)
        total = self.first(x)
        for group, tap in zip(self.groups, self.taps):
            x = group(x)
            total = total + tap(x)
        out = self.head(total)
        return out.mean(-1) if self.config.pool else out
