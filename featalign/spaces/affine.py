"""Affine layers as matrices: rows that a layer multiplies, its weight as `[out, fan-in]`, and writing one back.

Linear layers, convolutions without groups (rows are patches) and the transposed linear layer of GPT-2 are alike here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from featalign.errors import SpaceMismatch


def is_affine(module: nn.Module) -> bool:
    """Whether the functions of this file know the layer."""
    if isinstance(module, (nn.Conv1d, nn.Conv2d)):
        return module.groups == 1 and module.padding_mode == "zeros" and not isinstance(module.padding, str)
    return isinstance(module, nn.Linear) or _is_transposed(module)


def _is_transposed(module: nn.Module) -> bool:
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")  # `transformers`' linear layer, weight [in, out]


def _require(module: nn.Module) -> Any:
    if not is_affine(module):
        raise SpaceMismatch(
            f"a {type(module).__name__} has no matrix form here; known are Linear, ungrouped Conv1d and Conv2d"
        )
    return module


def rows(module: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """What each output position multiplies, `[samples * positions, fan-in]`, in the order of `capture.units_last`."""
    layer = _require(module)
    if isinstance(layer, (nn.Conv1d, nn.Conv2d)):
        flat = isinstance(layer, nn.Conv1d)
        options: Any = (layer.kernel_size, layer.dilation, layer.padding, layer.stride)
        if flat:
            options = tuple((fill, *value) for value, fill in zip(options, (1, 1, 0, 1)))
        patches = F.unfold(inputs.unsqueeze(2) if flat else inputs, *options)
        return patches.transpose(1, 2).reshape(-1, patches.shape[1])
    return inputs.reshape(-1, inputs.shape[-1])


def matrix(module: nn.Module) -> torch.Tensor:
    """The weight as `[out, fan-in]`."""
    weight = _require(module).weight.detach()
    return weight.T if _is_transposed(module) else weight.flatten(1)


def write(module: nn.Module, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
    """Put a matrix `[out, fan-in]` (and a bias) back into the layer, in its own shape and type."""
    layer = _require(module)
    with torch.no_grad():
        layer.weight.copy_((weight.T if _is_transposed(layer) else weight).reshape(layer.weight.shape))
        if bias is not None:
            layer.bias.copy_(bias)
