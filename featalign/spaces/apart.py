"""Modules that hide what they multiply, taken apart into layers for the analysis, and put together again."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import nn

from featalign.spaces.apply import rebuilt
from featalign.spaces.attention import SeparateAttention, State, as_packed, separable
from featalign.spaces.transposed import SpreadConvolution, as_transposed, spreadable

Together = Callable[[State, str, Any], State]  # (state of what was taken apart, prefix of its names, the module itself)
KINDS: tuple[tuple[Callable[[nn.Module], bool], Callable[[Any], nn.Module], Together], ...] = (
    (separable, SeparateAttention, as_packed),
    (spreadable, SpreadConvolution, as_transposed),
)


def separated(module: nn.Module) -> nn.Module:
    """A copy with every `nn.MultiheadAttention` and transposed convolution taken apart; itself where there is none.

    Attention with learned keys and values of its own (`add_bias_kv`), or a position of zeros, stays.
    """
    if not any(_kind(part) for part in module.modules()):
        return module
    kind = _kind(module)
    if kind is not None:
        return kind[1](module)
    result = copy.deepcopy(module)
    made: dict[int, nn.Module] = {}
    for part in list(result.modules()):
        if isinstance(part, nn.TransformerEncoder):
            part.use_nested_tensor = False
        for name, child in list(part._modules.items()):  # children under two names appear under both
            kind = None if child is None else _kind(child)
            if kind is not None:
                made[id(child)] = made.get(id(child)) or kind[1](child)
                setattr(part, name, made[id(child)])
    return result


def packed(fused: nn.Module, like: nn.Module) -> nn.Module:
    """A network that was taken apart in the layout of `like`, which it came from.

    Raises `SpaceMismatch` where heads do not fill the stream that they write to, as they have to in a
    `nn.MultiheadAttention`.
    """
    state = dict(fused.state_dict())
    for name, part in like.named_modules(remove_duplicate=False):
        kind = _kind(part)
        if kind is not None:
            state |= kind[2](state, f"{name}." if name else "", part)
    return rebuilt(like, state)


def _kind(part: nn.Module) -> Any:
    return next((kind for kind in KINDS if kind[0](part)), None)
