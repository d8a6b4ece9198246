"""A small vision transformer (Dosovitskiy et al. 2021), pre-norm, with mean pooling."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from featalign.clients.models import LATER, ModelConfig, models, picture
from featalign.clients.training import TrainConfig
from featalign.errors import BadOption

STEMS = ("patches", "convolutions")


@models.register("vit")
@dataclass(frozen=True)
class ViTConfig(ModelConfig):
    """A vision transformer small enough for two cores.

    Attributes:
        size, patch: of the square pictures, in pixels.
        width, depth, heads, hidden: of the residual stream, blocks, attention and feed-forward layers.
        channels, outputs: of the pictures and of the head.
        flat: inputs are flattened grey pictures `[N, size * size]`.
        stem: "patches", or "convolutions": 3x3 of stride two with BatchNorm, each halving the patch, which needs far
            fewer epochs (Xiao et al. 2021, "Early convolutions help transformers see better").
    """

    size: int = 32
    patch: int = 4
    width: int = 64
    depth: int = 4
    heads: int = 4
    hidden: int = 128
    channels: int = 3
    outputs: int = 10
    flat: bool = field(default=False, metadata=LATER)
    stem: str = field(default="patches", metadata=LATER)

    def __post_init__(self) -> None:
        if self.stem not in STEMS:
            raise BadOption(f"unknown stem '{self.stem}'; choices: {', '.join(STEMS)}")
        if self.stem == "convolutions" and (self.patch < 2 or self.patch & (self.patch - 1)):
            raise BadOption(f"patch {self.patch}: a stem of convolutions halves; give a power of two")
        if self.size % self.patch or self.width % self.heads:
            raise BadOption(
                f"size {self.size} by patch {self.patch}, width {self.width} by heads {self.heads}: must divide"
            )

    @classmethod
    def shaped(cls, shape: tuple[int, ...], outputs: int, **options: Any) -> ViTConfig:
        """Patches of four pixels (two on the smallest pictures), or of the next number that divides the side."""
        channels, size, flat = picture(shape, cls.name)
        largest = 4 if size > 12 else 2
        patch = options.pop("patch", next(p for p in range(largest, 0, -1) if size % p == 0))
        return cls(size=size, patch=patch, channels=channels, outputs=outputs, flat=flat, **options)

    @classmethod
    def recipe(cls, samples: int, **options: Any) -> TrainConfig:
        """AdamW with warm-up; more and smaller steps for fewer than 10,000 samples."""
        usual: dict[str, Any] = {
            "epochs": 5,
            "batch_size": 128,
            "lr": 2e-3,
            "optimizer": "adam",
            "schedule": "one-cycle",
        }
        if samples < 10_000:
            usual |= {"epochs": 30, "batch_size": 32}
        return TrainConfig(**{**usual, "schedule": "one-cycle", **options})

    def module(self) -> nn.Module:
        """A freshly initialised network."""
        return ViT(self)


def embedding(config: ViTConfig) -> nn.Module:
    """Pictures `[N, channels, size, size]` to `[N, width, size / patch, size / patch]`."""
    if config.stem == "patches":
        return nn.Conv2d(config.channels, config.width, config.patch, config.patch)
    halvings = config.patch.bit_length() - 1
    widths = [config.channels, *(max(config.width // 2 ** (halvings - k), 1) for k in range(1, halvings + 1))]
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Conv2d(before, after, 3, 2, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(config.width, config.width, 1))


class Attention(nn.Module):
    """Multi-head self-attention with separate projections `q`, `k`, `v`, `o`."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[N, tokens, width]` to the same shape."""
        q, k, v = (part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.o(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Pre-norm block: attention, then a feed-forward layer."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(config.width), nn.LayerNorm(config.width)
        self.attention = Attention(config.width, config.heads)
        self.fc1, self.fc2 = nn.Linear(config.width, config.hidden), nn.Linear(config.hidden, config.width)
        self.act = nn.GELU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[N, tokens, width]` to the same shape."""
        x = x + self.attention(self.ln1(x))
        return x + self.fc2(self.act(self.fc1(self.ln2(x))))


class ViT(nn.Module):
    """Pictures `[N, channels, size, size]` to logits: `embed`, `position`, `blocks.<k>`, `ln`, `head`."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.config = config
        tokens = (config.size // config.patch) ** 2
        if config.flat:
            self.picture = nn.Unflatten(1, (config.channels, config.size, config.size))
        self.embed = embedding(config)
        self.position = nn.Parameter(0.02 * torch.randn(1, tokens, config.width))
        self.blocks = nn.Sequential(*(Block(config) for _ in range(config.depth)))
        self.ln = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, config.outputs)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Logits `[N, outputs]`."""
        if self.config.flat:
            inputs = self.picture(inputs)
        x = self.embed(inputs).flatten(2).transpose(1, 2) + self.position
        return self.head(self.ln(self.blocks(x)).mean(1))
