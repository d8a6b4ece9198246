"""`nn.MultiheadAttention` taken apart: its packed projections as layers, so that what they read and write is seen."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeGuard

import torch
from torch import nn
from torch.nn import functional as F

from featalign.errors import SpaceMismatch

PROJECTIONS = ("q_proj", "k_proj", "v_proj")
State = dict[str, torch.Tensor]


class SeparateAttention(nn.Module):
    """What a `nn.MultiheadAttention` computes, by four Linear layers: `q_proj`, `k_proj`, `v_proj` and `out_proj`.

    Takes and returns what that module does; weights are copies of its own. Tensors pass the layers in the layout they
    come in, so that their positions stand in one order in the whole network. Source: Vaswani et al. 2017, "Attention is
    all you need", section 3.2.2.
    """

    q_proj: nn.Linear
    k_proj: nn.Linear
    v_proj: nn.Linear
    in_proj_bias = None  # keeps torch's encoder layers off a fused kernel that no module sees
    _qkv_same_embed_dim = False

    def __init__(self, packed: nn.MultiheadAttention):
        super().__init__()
        self.num_heads, self.batch_first, self.dropout = packed.num_heads, packed.batch_first, packed.dropout
        state, like = packed.state_dict(), next(packed.parameters())
        bias = packed.in_proj_bias is not None
        for place, (name, size) in enumerate(zip(PROJECTIONS, (packed.embed_dim, packed.kdim, packed.vdim))):
            layer = nn.Linear(size, packed.embed_dim, bias, device=like.device, dtype=like.dtype)
            whole = state.get("in_proj_weight")
            own = state[f"{name}_weight"] if whole is None else whole.chunk(3)[place]
            layer.load_state_dict({"weight": own, **({"bias": state["in_proj_bias"].chunk(3)[place]} if bias else {})})
            setattr(self, name, layer)
        self.out_proj = nn.Linear(
            packed.embed_dim, packed.embed_dim, packed.out_proj.bias is not None, device=like.device, dtype=like.dtype
        )
        self.out_proj.load_state_dict(packed.out_proj.state_dict())
        self.train(packed.training)

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        key_padding_mask: torch.Tensor | None = None,
        need_weights: bool = True,
        attn_mask: torch.Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Outputs in the layout of the queries, and weights `[samples, (heads,) queries, keys]` or None.

        As `nn.MultiheadAttention.forward`: `query [samples, queries, embed_dim]` (positions first, or without samples,
        as that module takes them), `key`, `value` alike; `key_padding_mask [samples, keys]` and `attn_mask`
        `[queries, keys]` or `[samples * heads, queries, keys]` hide where they are true, or are added to the scores.
        `is_causal` is a hint that changes nothing: the mask says it.
        """
        batched = query.dim() == 3
        q, k, v = (
            self._by_head(layer(x), batched)
            for layer, x in zip((self.q_proj, self.k_proj, self.v_proj), (query, key, value))
        )
        mask = self._mask(q, k, key_padding_mask, attn_mask)
        rate = self.dropout if self.training else 0.0
        if need_weights:
            scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
            weights = F.dropout((scores if mask is None else scores + mask).softmax(-1), rate)
            z = weights @ v
        else:
            z = F.scaled_dot_product_attention(q, k, v, mask, rate)
        z = z.transpose(1, 2).flatten(2)  # [samples, positions, units]
        if not batched:
            z = z[0]
        elif not self.batch_first:
            z = z.transpose(0, 1)
        result = self.out_proj(z)
        if not need_weights:
            return result, None
        weights = weights.mean(1) if average_attn_weights else weights
        return result, weights if batched else weights[0]

    def _by_head(self, x: torch.Tensor, batched: bool) -> torch.Tensor:
        """`[samples, heads, positions, width]`."""
        x = x[None] if not batched else x if self.batch_first else x.transpose(0, 1)
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def _mask(
        self, q: torch.Tensor, k: torch.Tensor, padding: torch.Tensor | None, mask: torch.Tensor | None
    ) -> torch.Tensor | None:
        """What is added to the scores, up to `[samples, heads, queries, keys]`; None for nothing."""
        parts = []
        if mask is not None:
            parts.append(mask.unflatten(0, (-1, self.num_heads)) if mask.dim() == 3 else mask)
        if padding is not None:
            parts.append((padding if padding.dim() == 2 else padding[None])[:, None, None])
        added = [
            torch.zeros(part.shape, dtype=q.dtype, device=q.device).masked_fill_(part, -torch.inf)
            if part.dtype is torch.bool
            else part.to(q.dtype)
            for part in parts
        ]
        return sum(added[1:], added[0]) if added else None


@contextmanager
def layer_by_layer() -> Iterator[None]:
    """Attention on its plain path: torch's fused kernels pass by the layers inside."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def separable(part: nn.Module) -> TypeGuard[nn.MultiheadAttention]:
    """Whether it is torch's own attention, without learned keys and values or a position of zeros."""
    plain = isinstance(part, nn.MultiheadAttention) and type(part) is nn.MultiheadAttention
    return plain and part.bias_k is None and part.bias_v is None and not part.add_zero_attn


def as_packed(state: State, prefix: str, like: nn.MultiheadAttention) -> State:
    """What a state holds of separate projections, in the layout of the packed ones; taken out of the state.

    Raises `SpaceMismatch` where its heads do not fill the stream that they write to, as they have to there.
    """
    own = {f"{prefix}{key}": value for key, value in like.state_dict().items()}
    found: State = {}
    for kind in ("weight", "bias"):
        parts = [state.pop(f"{prefix}{each}.{kind}", None) for each in PROJECTIONS]
        held = [part for part in parts if part is not None]
        if kind == "weight" and f"{prefix}in_proj_weight" not in own:
            found |= {f"{prefix}{each}_weight": part for each, part in zip(PROJECTIONS, held)}
        elif held:
            found[f"{prefix}in_proj_{kind}"] = torch.cat(held)
    for key, value in own.items():
        new = found.get(key, state.get(key))
        if new is not None and new.shape != value.shape:
            raise SpaceMismatch(
                f"'{key}' would be {list(new.shape)}, and MultiheadAttention '{prefix.rstrip('.')}' holds "
                f"{list(value.shape)}; keep the reference's width, or the network in canonical form"
            )
    return found
