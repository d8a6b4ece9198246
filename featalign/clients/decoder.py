"""A small decoder transformer through TransformerLens, and its training as a character model.

Tokens are characters: the vocabulary is what the texts hold, shared by all clients of an experiment.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from featalign.clients.models import models
from featalign.errors import BadOption


@models.register("decoder")
@dataclass(frozen=True)
class DecoderConfig:
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

    def to_dict(self) -> dict[str, Any]:
        """Plain values with the registered name under `model`."""
        return {"model": "decoder", **asdict(self)}

    def module(self) -> nn.Module:
        """A freshly initialised `HookedTransformer`: tokens `[N, context]` to logits `[N, context, vocabulary]`."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            from transformer_lens import HookedTransformer, HookedTransformerConfig

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


def encode(text: str, alphabet: Sequence[str]) -> torch.Tensor:
    """Tokens `[characters]` of a text; characters outside the alphabet are dropped."""
    index = {character: k for k, character in enumerate(alphabet)}
    return torch.tensor([index[c] for c in text if c in index], dtype=torch.long)


def windows(tokens: torch.Tensor, context: int, count: int, generator: torch.Generator) -> torch.Tensor:
    """Random windows `[count, context + 1]` of a token stream; raises `BadOption` when it is shorter than one."""
    if len(tokens) <= context:
        raise BadOption(f"a text of {len(tokens)} characters is shorter than the context of {context} + 1")
    starts = torch.randint(len(tokens) - context, (count,), generator=generator)
    return tokens[starts[:, None] + torch.arange(context + 1)]


def next_token_loss(module: nn.Module, sequences: torch.Tensor, batch_size: int = 256) -> float:
    """Mean cross-entropy in nats per character over `sequences [N, context + 1]`, in eval mode."""
    training = module.training
    module.eval()
    total = 0.0
    with torch.no_grad():
        for batch in sequences.split(batch_size):
            logits = module(batch[:, :-1])
            total += F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum").item()
    module.train(training)
    return total / sequences[:, 1:].numel()


def train_decoder(
    module: nn.Module,
    tokens: torch.Tensor,
    steps: int = 1500,
    batch_size: int = 32,
    lr: float = 3e-3,
    seed: int = 0,
    progress: bool = True,
) -> list[float]:
    """Train in place with AdamW, linear warm-up over a tenth of the steps and cosine decay; a loss per 100 steps."""
    from tqdm.auto import trange

    generator = torch.Generator().manual_seed(seed)
    context = int(module.cfg.n_ctx)  # type: ignore[union-attr,arg-type]
    optimizer = torch.optim.AdamW(module.parameters(), lr=lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, steps, pct_start=0.1)
    losses: list[float] = []
    module.train()
    for step in trange(steps, desc="decoder", disable=not progress, leave=False):
        batch = windows(tokens, context, batch_size, generator)
        logits = module(batch[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 99:
            losses.append(loss.item())
    module.eval()
    return losses
