"""A small decoder transformer through TransformerLens."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

from torch import nn

from featalign.clients.models import ModelConfig, models
from featalign.clients.training import TrainConfig
from featalign.errors import BadOption


@models.register("decoder")
@dataclass(frozen=True)
class DecoderConfig(ModelConfig):
    """A pre-norm decoder (`HookedTransformer`) for next-character prediction.

    Attributes:
        vocabulary, context: characters, and tokens per sequence.
        width, depth, heads, hidden: of the residual stream, blocks, attention and feed-forward layers.
        activation: relu, gelu or silu.
    """

    vocabulary: int = 64
    context: int = 64
    width: int = 64
    depth: int = 2
    heads: int = 4
    hidden: int = 256
    activation: str = "gelu"

    def __post_init__(self) -> None:
        if self.width % self.heads or self.vocabulary < 2:
            raise BadOption(f"width {self.width} by heads {self.heads} must divide; vocabulary {self.vocabulary} >= 2")

    @classmethod
    def shaped(cls, shape: tuple[int, ...], outputs: int, **options: Any) -> DecoderConfig:
        """Contexts as long as the sequences, and a token per output; raises `BadOption` for inputs but `[N, T]`."""
        if len(shape) != 1:
            raise BadOption(f"model '{cls.name}' reads tokens [N, T], not {list(shape)}; use another model")
        return cls(vocabulary=outputs, context=shape[0], **options)

    @classmethod
    def recipe(cls, samples: int, **options: Any) -> TrainConfig:
        """A thousand steps of AdamW, with warm-up over the first tenth."""
        usual: dict[str, Any] = {
            **{"steps": 1000, "batch_size": 32, "lr": 3e-3, "weight_decay": 0.01},
            **{"optimizer": "adam", "schedule": "one-cycle"},
        }
        return TrainConfig(**{**usual, **options})

    def module(self) -> nn.Module:
        """A freshly initialised `HookedTransformer`: tokens `[N, context]` to logits `[N, context, vocabulary]`.

        Raises `BadOption` where TransformerLens is too new to have it.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            try:
                from transformer_lens import HookedTransformer, HookedTransformerConfig
            except ImportError as error:
                raise BadOption(
                    "model 'decoder' is a HookedTransformer, which this TransformerLens no longer has; "
                    "pip install 'transformer-lens<4'"
                ) from error
            return HookedTransformer(
                HookedTransformerConfig(
                    n_layers=self.depth,
                    d_model=self.width,
                    n_ctx=self.context,
                    d_head=self.width // self.heads,
                    n_heads=self.heads,
                    d_mlp=self.hidden,
                    d_vocab=self.vocabulary,
                    act_fn=self.activation,
                    normalization_type="LN",
                    device="cpu",
                )
            )
