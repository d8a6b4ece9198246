"""torch's own `nn.TransformerEncoder` on the rows of pictures, norms before or after the sums, with mean pooling."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from featalign.clients.families.vit import ViTConfig
from featalign.clients.models import LATER, ModelConfig, models, picture
from featalign.clients.training import TrainConfig
from featalign.errors import BadOption


@models.register("encoder")
@dataclass(frozen=True)
class EncoderConfig(ModelConfig):
    """A transformer of `torch.nn` (Vaswani et al. 2017), whose attention is `nn.MultiheadAttention`.

    Attributes:
        size, channels: of the square pictures; every row of pixels is a token.
        width, depth, heads, hidden: of the residual stream, blocks, attention and feed-forward layers.
        outputs: of the head.
        norm_first: LayerNorm before every sublayer instead of after its sum, as in BERT.
        flat: inputs are flattened grey pictures `[N, size * size]`.
    """

    size: int = 8
    width: int = 32
    depth: int = 2
    heads: int = 4
    hidden: int = 64
    channels: int = 1
    outputs: int = 10
    norm_first: bool = False
    flat: bool = field(default=False, metadata=LATER)

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise BadOption(f"width {self.width} by heads {self.heads}: must divide")

    @classmethod
    def shaped(cls, shape: tuple[int, ...], outputs: int, **options: Any) -> EncoderConfig:
        """A token for every row."""
        channels, size, flat = picture(shape, cls.name)
        return cls(size=size, channels=channels, outputs=outputs, flat=flat, **options)

    @classmethod
    def recipe(cls, samples: int, **options: Any) -> TrainConfig:
        """As a vision transformer is trained."""
        return ViTConfig.recipe(samples, **options)

    def module(self) -> nn.Module:
        """A freshly initialised network."""
        return Encoder(self)


class Encoder(nn.Module):
    """Rows embedded, `blocks`, (`norm`,) mean over rows, `head`."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.config = config
        layer = nn.TransformerEncoderLayer(
            config.width, config.heads, config.hidden, 0.0, batch_first=True, norm_first=config.norm_first
        )
        self.embed = nn.Linear(config.channels * config.size, config.width)
        self.position = nn.Parameter(torch.randn(config.size, config.width) * 0.02)
        norm = nn.LayerNorm(config.width) if config.norm_first else None
        self.blocks = nn.TransformerEncoder(layer, config.depth, norm, enable_nested_tensor=False)
        self.head = nn.Linear(config.width, config.outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Pictures `[N, channels, size, size]` (or flat) to logits `[N, outputs]`."""
        config = self.config
        rows = x.reshape(-1, config.channels, config.size, config.size).transpose(1, 2).flatten(2)
        return self.head(self.blocks(self.embed(rows) + self.position).mean(1))  # type: ignore[no-any-return]
