"""How an input that is no text is shown: pictures, the part of one that a channel sees, lines, columns of a table."""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from featalign.plots.sprites import sprite_sheet

if TYPE_CHECKING:
    from featalign.studies.features.cards import Contexts
    from featalign.studies.features.source import Source

LINE = (32, 96)  # height and width of a drawn signal
SIDE = 64  # pixels of a thumbnail, at most
SHEET = 6_000_000  # numbers in a sheet of thumbnails, at most
COLUMNS = 6
TRIALS = 4  # random inputs that a receptive field is found with


@dataclass(frozen=True)
class Columns:
    """Which columns of a table are unusual on the inputs that drive a latent.

    Attributes:
        index: `[F, 6]`, the most unusual first; -1 where there are fewer.
        deviation: `[F, 6]` mean over those inputs, in standard deviations from the mean of all inputs.
    """

    index: torch.Tensor
    deviation: torch.Tensor


def columns_of(source: Source, top: Contexts) -> Columns | None:
    """Unusual columns of the top inputs; None where inputs are not rows of a table."""
    example = source.inputs.example(1)
    table = [t for t in example.tensors if t.dim() == 2 and t.is_floating_point()]
    if len(example.tensors) != 1 or not table or is_picture(table[0][0]):
        return None
    total, square, count = torch.zeros(()), torch.zeros(()), 0
    for batch in source.inputs:
        values = batch.tensors[0].double().cpu()
        total, square, count = total + values.sum(0), square + values.square().sum(0), count + len(values)
    mean = total / count
    scale = (square / count - mean.square()).clamp_min(0).sqrt()
    known = top.value > -torch.inf
    used, place = top.input[known].unique(return_inverse=True)
    if len(used) == 0:
        return None
    rows = torch.cat([batch.tensors[0].double().cpu() for batch in source.inputs.subset(used)])
    unusual = ((rows - mean) / scale.clamp_min(1e-12)).where(scale > 1e-12, 0).float()
    latents, wide = len(top.value), min(COLUMNS, unusual.shape[1])
    owner = torch.arange(latents)[:, None].expand_as(known)[known]
    index, deviation = torch.full((latents, COLUMNS), -1), torch.full((latents, COLUMNS), torch.nan)
    for some in torch.arange(latents).split(max(1, 2**22 // unusual.shape[1])):
        mine = (owner >= some[0]) & (owner <= some[-1])
        sums = torch.zeros(len(some), unusual.shape[1]).index_add_(0, owner[mine] - some[0], unusual[place[mine]])
        average = sums / known[some].sum(1, keepdim=True).clamp_min(1)
        best = average.abs().topk(wide, dim=1).indices
        fires = known[some].any(1, keepdim=True)
        index[some, :wide] = best.where(fires, -1)
        deviation[some, :wide] = average.gather(1, best).where(fires, torch.nan)
    return Columns(index, deviation)


@dataclass(frozen=True)
class Patches:
    """The part of a picture that each position of a convolution sees.

    Attributes:
        grid: rows and columns of positions; size: height and width of the picture.
        first: top and left of the field of position (0, 0); step: between neighbours; field: height and width.
    """

    grid: tuple[int, int]
    size: tuple[int, int]
    first: tuple[float, float]
    step: tuple[float, float]
    field: tuple[int, int]

    def box(self, position: int) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of what a position sees, inside the picture."""
        place = divmod(position, self.grid[1])
        low = [round(f + k * s) for f, k, s in zip(self.first, place, self.step)]
        high = [start + length for start, length in zip(low, self.field)]
        low = [min(max(0, start), whole - 1) for start, whole in zip(low, self.size)]
        high = [max(min(whole, end), start + 1) for end, start, whole in zip(high, low, self.size)]
        return low[1], low[0], high[1], high[0]


def patches_of(source: Source) -> Patches | None:
    """Receptive fields, measured by gradients of one central position; None where positions are no places in pictures.

    What a position can see is measured, not what it attends to: behind many layers it is the whole picture.
    """
    example = source.inputs.example(1)
    if len(example.tensors) != 1 or example.tensors[0].dim() != 4 or source.site.tile * source.site.repeat > 1:
        return None
    picture = example.on(source.module).tensors[0]
    part = source.module.get_submodule(source.site.module)
    channels = isinstance(part, (nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm)) or source.site.dim == 1
    draw = torch.Generator().manual_seed(0)
    noise = torch.randn(TRIALS, *picture.shape[1:], generator=draw).to(picture) * (picture.std() + 1e-3)
    noise = (noise + picture.mean()).requires_grad_()
    seen = _seen(source, noise)
    if seen is None or seen.dim() != 4 or not channels or seen.shape[0] != TRIALS or not seen.requires_grad:
        return None
    grid, size = tuple(seen.shape[2:]), tuple(picture.shape[2:])
    centre = (grid[0] // 2, grid[1] // 2)
    (slope,) = torch.autograd.grad(seen[:, :, centre[0], centre[1]].sum(), noise)
    touched = torch.nonzero(slope.abs().sum((0, 1)) > 0)
    if len(touched) == 0:
        return None
    low, high = touched.min(0).values.tolist(), touched.max(0).values.tolist()
    step = (size[0] / grid[0], size[1] / grid[1])
    if grid[0] > 1 and grid[1] > 1:
        step = (float(round(step[0])), float(round(step[1])))
    first = (low[0] - centre[0] * step[0], low[1] - centre[1] * step[1])
    field = (high[0] - low[0] + 1, high[1] - low[1] + 1)
    return Patches((grid[0], grid[1]), (size[0], size[1]), first, step, field)


def _seen(source: Source, picture: torch.Tensor) -> torch.Tensor | None:
    """What passes the site, with its gradients."""
    found: list[torch.Tensor] = []

    def keep(value: Any) -> None:
        while isinstance(value, (tuple, list)) and value:
            value = value[0]
        if isinstance(value, torch.Tensor):
            found.append(value)

    part, training = source.module.get_submodule(source.site.module), source.module.training
    if source.site.side == "in":
        handle = part.register_forward_pre_hook(lambda _m, args: keep(args))
    else:
        handle = part.register_forward_hook(lambda _m, _args, out: keep(out))
    states = {name: module.training for name, module in source.module.named_modules()}
    source.module.eval()
    try:
        with torch.enable_grad():
            source.module(picture)
    finally:
        handle.remove()
        source.module.train(training)
        for name, module in source.module.named_modules():
            module.training = states[name]
    return found[0].clone() if len(found) == 1 else None


def thumbnail_limit(source: Source) -> int:
    """How many thumbnails of these inputs fit a sheet."""
    example = source.inputs.example(1).tensors[0][0]
    return max(200, SHEET // max(1, _thumbnail(example).size))


def thumbnails(source: Source, inputs: torch.Tensor) -> dict[str, Any]:
    """A sheet of pictures of chosen inputs, in their order; lines for signals and vectors."""
    if len(inputs) == 0:
        return sprite_sheet(np.zeros((0, 1, 1)))
    found = [_thumbnail(tensor) for batch in source.inputs.subset(inputs) for tensor in batch.tensors[0]]
    return sprite_sheet(np.stack(found))


def _thumbnail(tensor: torch.Tensor) -> np.ndarray:
    """`[H, W]` or `[3, H, W]` of one input, at most `SIDE` on a side."""
    tensor = tensor.detach().cpu().float()
    if not is_picture(tensor):
        return drawn(tensor.numpy() if tensor.dim() else tensor.reshape(1).numpy())
    if tensor.dim() == 1:
        tensor = tensor.reshape(isqrt(len(tensor)), -1)
    if tensor.dim() == 3 and tensor.shape[0] not in (1, 3):
        tensor = tensor.mean(0)
    if max(tensor.shape[-2:]) > SIDE:
        scale = SIDE / max(tensor.shape[-2:])
        shape = [max(1, round(scale * side)) for side in tensor.shape[-2:]]
        whole = tensor.reshape(1, -1, *tensor.shape[-2:])
        small = nn.functional.interpolate(whole, shape, mode="area")[0]
        tensor = small if tensor.dim() == 3 else small[0]
    return tensor.numpy()


def is_picture(tensor: torch.Tensor) -> bool:
    """Whether one input is shown as a picture: `[C, H, W]`, `[H, W]` nearly square, or a square one flattened."""
    if tensor.dim() == 3:
        return True
    if tensor.dim() == 2:
        return max(tensor.shape) <= 2 * min(tensor.shape) and min(tensor.shape) >= 8
    return tensor.dim() == 1 and len(tensor) >= 64 and isqrt(len(tensor)) ** 2 == len(tensor)


def drawn(values: np.ndarray) -> np.ndarray:
    """A vector, or the channels of a signal `[..., positions]`, as lines `[height, width]`."""
    height, width = LINE
    lines = values.reshape(-1, values.shape[-1])[:4] if values.ndim > 1 else values.reshape(1, -1)
    low, high = float(np.nanmin(lines)), float(np.nanmax(lines))
    picture = np.zeros((height, width), dtype=np.float32)
    for k, line in enumerate(lines):
        at = np.interp(np.linspace(0, max(len(line) - 1, 1), width), np.arange(len(line)), line)
        level = ((high - at) / max(high - low, 1e-9) * (height - 1)).round().astype(int)
        for x in range(width):
            before = level[max(x - 1, 0)]
            picture[min(before, level[x]) : max(before, level[x]) + 1, x] = 1 - 0.18 * k
    return picture
