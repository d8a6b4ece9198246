"""Transposed convolutions as plain ones over spread inputs, so that what they multiply is seen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeGuard

import torch
from torch import nn
from torch.nn import functional as F

KINDS: dict[type[nn.Module], type[nn.Conv1d] | type[nn.Conv2d]] = {
    nn.ConvTranspose1d: nn.Conv1d,
    nn.ConvTranspose2d: nn.Conv2d,
}
State = dict[str, torch.Tensor]


class SpreadConvolution(nn.Module):
    """What a transposed convolution computes: the plain convolution `conv` over inputs with `stride - 1` zeros between.

    Its kernel is the transposed one, reversed. Source: Dumoulin and Visin 2016, "A guide to convolution arithmetic for
    deep learning", section 4.
    """

    def __init__(self, transposed: nn.ConvTranspose1d | nn.ConvTranspose2d):
        super().__init__()
        weight, bias = transposed.weight, transposed.bias
        padding: Any = transposed.padding  # numbers: a transposed convolution takes no words
        self.stride, self.output_padding = transposed.stride, transposed.output_padding
        self.margins = [
            spread * (size - 1) - cut for spread, size, cut in zip(transposed.dilation, transposed.kernel_size, padding)
        ]
        kind = KINDS[type(transposed)]
        self.conv = kind(
            transposed.in_channels, transposed.out_channels, transposed.kernel_size,  # type: ignore[arg-type]
            dilation=transposed.dilation, groups=transposed.groups, bias=bias is not None,  # type: ignore[arg-type]
            device=weight.device, dtype=weight.dtype,
        )  # fmt: skip
        own = {"weight": reversed_kernel(weight.detach(), transposed.groups)}
        self.conv.load_state_dict(own if bias is None else {**own, "bias": bias.detach()})
        self.train(transposed.training)

    def forward(self, x: torch.Tensor, output_size: Sequence[int] | None = None) -> torch.Tensor:
        """`[samples, channels, positions...]`, as the transposed convolution takes and returns them.

        `output_size`: positions of the output where a stride leaves a choice; by default as the module was made.
        """
        places = len(self.stride)
        sides: list[int] = []
        for place, (step, margin, more) in enumerate(zip(self.stride, self.margins, self.output_padding)):
            dim = x.dim() - places + place
            size = step * (x.shape[dim] - 1) + 1
            if step > 1:
                spread = F.pad(x.unsqueeze(dim + 1), [*(0, 0) * (x.dim() - dim - 1), 0, step - 1])
                x = spread.flatten(dim, dim + 1).narrow(dim, 0, size)
            if output_size is not None:
                reach = self.conv.dilation[place] * (self.conv.kernel_size[place] - 1)
                more = output_size[place - places] - (size + 2 * margin - reach)
            sides = [margin, margin + more, *sides]
        return self.conv(F.pad(x, sides))  # type: ignore[no-any-return]


def reversed_kernel(weight: torch.Tensor, groups: int) -> torch.Tensor:
    """`[in, out / groups, kernel...]` as `[out, in / groups, kernel...]`, last position first. Its own inverse."""
    parts = weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
    return parts.flip(tuple(range(2, weight.dim()))).contiguous()


def spreadable(part: nn.Module) -> TypeGuard[nn.ConvTranspose1d | nn.ConvTranspose2d]:
    """Whether it is torch's own transposed convolution, with a weight of its own."""
    return type(part) in KINDS and "weight" in part._parameters and "forward" not in vars(part)


def as_transposed(state: State, prefix: str, like: nn.ConvTranspose1d | nn.ConvTranspose2d) -> State:
    """What a state holds of a spread convolution, in the layout of the transposed one; taken out of the state."""
    found = {f"{prefix}weight": reversed_kernel(state.pop(f"{prefix}conv.weight"), like.groups)}
    if like.bias is not None:
        found[f"{prefix}bias"] = state.pop(f"{prefix}conv.bias")
    return found
