"""Affine layers as matrices: rows that a layer multiplies, their second moments, its weight, and writing one back.

Linear layers, convolutions without groups (rows are patches) and the transposed linear layer of GPT-2 are alike here.
"""

from __future__ import annotations

from collections import defaultdict
from functools import lru_cache
from itertools import pairwise, product
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from featalign.errors import SpaceMismatch

_SMALL = 64  # fan-in up to which patches are the faster way to a Gram matrix


def is_affine(module: nn.Module) -> bool:
    """Whether the functions of this file know the layer: its forward is the plain one, its weight a parameter.

    Grouped convolutions, subclasses with a forward of their own and weights computed from others (weight
    normalisation, parametrizations, pruning) are not.
    """
    if isinstance(module, (nn.Conv1d, nn.Conv2d)):
        kind: Any = nn.Conv1d if isinstance(module, nn.Conv1d) else nn.Conv2d
        plain = type(module).forward is kind.forward and type(module)._conv_forward is kind._conv_forward
        known = plain and module.groups == 1
    elif isinstance(module, nn.Linear):
        known = type(module).forward is nn.Linear.forward
    else:
        known = _is_transposed(module)
    return known and "forward" not in vars(module) and _owns_weight(module)


def _is_transposed(module: nn.Module) -> bool:
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")  # `transformers`' linear layer, weight [in, out]


def _owns_weight(module: nn.Module) -> bool:
    """Whether `weight` (and `bias`) are parameters, not computed before every call."""
    held = module._parameters
    return held.get("weight") is not None and ("bias" in held or getattr(module, "bias", None) is None)


def _require(module: nn.Module) -> Any:
    if not is_affine(module):
        computed = isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d)) and not _owns_weight(module)
        if computed:
            raise SpaceMismatch(
                f"the weight of a {type(module).__name__} is computed from other parameters; "
                "remove its parametrization (torch.nn.utils.parametrize.remove_parametrizations) first"
            )
        raise SpaceMismatch(
            f"a {type(module).__name__} has no matrix form here; known are plain Linear, ungrouped Conv1d and Conv2d"
        )
    return module


def _padded(layer: Any, inputs: torch.Tensor) -> torch.Tensor:
    """`[N, C, H, W]` inputs of a convolution with its padding applied; a Conv1d gets `H = 1`."""
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    padded = F.pad(inputs, list(layer._reversed_padding_repeated_twice), mode)
    return padded.unsqueeze(2) if isinstance(layer, nn.Conv1d) else padded


def _geometry(layer: Any) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """Kernel, dilation and stride as pairs."""
    options = (layer.kernel_size, layer.dilation, layer.stride)
    kernel, dilation, stride = ((1, *value) if len(value) == 1 else tuple(value) for value in options)
    return kernel, dilation, stride


def rows(module: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """What each output position multiplies, `[samples * positions, fan-in]`, in the order of `capture.units_last`."""
    layer = _require(module)
    if not isinstance(layer, (nn.Conv1d, nn.Conv2d)):
        return inputs.reshape(-1, inputs.shape[-1])
    kernel, dilation, stride = _geometry(layer)
    patches = F.unfold(_padded(layer, inputs), kernel, dilation, 0, stride)
    return patches.transpose(1, 2).reshape(-1, patches.shape[1])


def matrix(module: nn.Module) -> torch.Tensor:
    """The weight as `[out, fan-in]`."""
    weight = _require(module).weight.detach()
    return weight.T if _is_transposed(module) else weight.flatten(1)


def write(module: nn.Module, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
    """Put a matrix `[out, fan-in]` (and a bias) back into the layer, in its own shape and type.

    Raises `SpaceMismatch` for layers whose weight is computed from other parameters.
    """
    layer = _require(module)
    with torch.no_grad():
        layer.weight.copy_((weight.T if _is_transposed(layer) else weight).reshape(layer.weight.shape))
        if bias is not None:
            layer.bias.copy_(bias)


def gram(module: nn.Module, inputs: torch.Tensor, augmented: bool = False) -> torch.Tensor:
    """`X^T X [fan-in, fan-in]` of the rows `X` that a layer multiplies, float64.

    Of convolutions from products of the input with its own shifts: two kernel positions that are equally far apart
    meet the same products but for the edges, so that each distance is summed once instead of once per pair.
    `augmented` appends a column of ones to `X` (the bias).
    """
    layer = _require(module)
    convolution = isinstance(layer, (nn.Conv1d, nn.Conv2d))
    if not convolution or matrix(layer).shape[1] <= _SMALL:
        x = rows(layer, inputs).double()
        second, first, count = x.T @ x, x.sum(0), len(x)
    else:
        shifts = _Shifts(layer, inputs)
        second, first, count = shifts.gram(), shifts.sums(), shifts.count
    if not augmented:
        return second
    corner = second.new_full((1, 1), count)
    return torch.cat([torch.cat([second, first[:, None]], 1), torch.cat([first[None], corner], 1)])


def cross(module: nn.Module, inputs: torch.Tensor, targets: torch.Tensor, augmented: bool = False) -> torch.Tensor:
    """`X^T T [fan-in, m]` with `targets [samples * positions, m]` in the order of `capture.units_last`, float64."""
    layer, targets = _require(module), targets.double()
    if isinstance(layer, (nn.Conv1d, nn.Conv2d)):
        product_sum = _Shifts(layer, inputs).cross(targets)
    else:
        product_sum = rows(layer, inputs).double().T @ targets
    return torch.cat([product_sum, targets.sum(0)[None]]) if augmented else product_sum


class _Shifts:
    """The input of a convolution as every kernel position sees it, cut from one padded copy per stride phase."""

    def __init__(self, layer: Any, inputs: torch.Tensor):
        kernel, dilation, self.stride = _geometry(layer)
        self.padded = _padded(layer, inputs).double()  # [N, C, H, W]
        self.channels = self.padded.shape[1]
        high, wide = (
            (s - d * (k - 1) - 1) // t + 1 for s, k, d, t in zip(self.padded.shape[2:], kernel, dilation, self.stride)
        )
        self.out = (high, wide)
        self.offsets = [(y * dilation[0], x * dilation[1]) for y in range(kernel[0]) for x in range(kernel[1])]
        self.count = inputs.shape[0] * self.out[0] * self.out[1]

    def windows(self, phase: tuple[int, int], starts: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """`[T, N, C, size]` of one stride phase from T starts; one row from one start is not copied."""
        cut = self.padded[:, :, phase[0] :: self.stride[0], phase[1] :: self.stride[1]]
        if len(starts) == 1:
            y, x = starts[0].tolist()
            return cut[None, :, :, y : y + size[0], x : x + size[1]].flatten(3)
        every = cut.unfold(2, size[0], 1).unfold(3, size[1], 1)
        return every[:, :, starts[:, 0], starts[:, 1]].movedim(2, 0).flatten(3)

    def at(self, offset: tuple[int, int]) -> torch.Tensor:
        """`[N, C, positions]` that one kernel position multiplies."""
        phase, start = self.split(offset)
        return self.windows(phase, torch.tensor([start]), self.out)[0]

    def split(self, offset: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
        """Stride phase of an offset and where it starts in it."""
        return (
            (offset[0] % self.stride[0], offset[1] % self.stride[1]),
            (offset[0] // self.stride[0], offset[1] // self.stride[1]),
        )

    def sums(self) -> torch.Tensor:
        """`[C * kernel]` sums of the rows."""
        return torch.stack([self.at(offset).sum((0, 2)) for offset in self.offsets], 1).flatten()

    def cross(self, targets: torch.Tensor) -> torch.Tensor:
        """`[C * kernel, m]`; targets are `[N * positions, m]`."""
        by_sample = targets.reshape(len(self.padded), -1, targets.shape[1])
        return torch.stack([(self.at(offset) @ by_sample).sum(0) for offset in self.offsets], 1).flatten(0, 1)

    def gram(self) -> torch.Tensor:
        """`[C * kernel, C * kernel]`, one sweep over the input for every distance between kernel positions."""
        count, channels = len(self.offsets), self.channels
        result = self.padded.new_zeros(count, count, channels, channels)
        groups: dict[Any, list[tuple[int, int]]] = defaultdict(list)
        for a in range(count):
            for b in range(a, count):
                (phase_a, start_a), (phase_b, start_b) = self.split(self.offsets[a]), self.split(self.offsets[b])
                lag = (start_b[0] - start_a[0], start_b[1] - start_a[1])
                groups[phase_a, phase_b, lag].append((a, b))
        for (phase_a, phase_b, lag), pairs in groups.items():
            first, second = torch.tensor(pairs).T
            total = result.new_zeros(len(pairs), channels**2)
            starts = tuple(self.split(self.offsets[a])[1] for a, _ in pairs)
            for corners, size, held in _tiles(starts, self.out):
                left = self.windows(phase_a, corners, size)
                right = self.windows(phase_b, corners + torch.tensor(lag), size)
                total += held.to(total) @ (left @ right.mT).sum(1).flatten(1)
            result[first, second] = total.unflatten(1, (channels, channels))
            result[second, first] = total.unflatten(1, (channels, channels)).mT
        return result.permute(2, 0, 3, 1).flatten(2).flatten(0, 1)


@lru_cache(256)
def _tiles(
    starts: tuple[tuple[int, int], ...], out: tuple[int, int]
) -> list[tuple[torch.Tensor, tuple[int, int], torch.Tensor]]:
    """Rectangles that the windows of size `out` from these starts are made of, those of one size together.

    Their corners `[T, 2]`, their size, and which window holds which `[windows, T]`.
    """
    cuts = [sorted({edge for start in starts for edge in (start[k], start[k] + out[k])}) for k in (0, 1)]
    alike: dict[tuple[int, int], list[tuple[tuple[int, int], list[bool]]]] = defaultdict(list)
    for (top, bottom), (left, right) in product(*(pairwise(edges) for edges in cuts)):
        held = [y <= top and bottom <= y + out[0] and x <= left and right <= x + out[1] for y, x in starts]
        if any(held):
            alike[bottom - top, right - left].append(((top, left), held))
    found = []
    for size, tiles in alike.items():
        corners, holders = zip(*tiles)
        found.append((torch.tensor(corners), size, torch.tensor(holders).T))
    return found
