"""Training pictures as no epoch saw them before: mirrored, shifted, coarse."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch.nn import functional as F

from featalign.data.batch import Batch
from featalign.errors import BadOption


def augmented(batch: Batch, flip: bool, shift: int, generator: torch.Generator) -> Batch:
    """A batch of pictures `[samples, channels, height, width]`, each changed by its own draw.

    Args:
        flip: mirror every second picture, on average, left to right.
        shift: move by up to so many pixels in both directions; zero (the mean of standardised pictures) fills up.

    Raises `BadOption` for inputs that are no such pictures.
    """
    if not flip and not shift:
        return batch
    pictures = _pictures(batch)
    samples, _, height, width = pictures.shape
    rows, columns = torch.arange(height).expand(samples, -1), torch.arange(width).expand(samples, -1)
    if shift:
        pictures = F.pad(pictures, (shift,) * 4)
        moved = torch.randint(2 * shift + 1, (2, samples, 1), generator=generator)
        rows, columns = rows + moved[0], columns + moved[1]
    if flip:
        mirrored = torch.rand(samples, 1, generator=generator) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    chosen = pictures.permute(0, 2, 3, 1)[torch.arange(samples)[:, None, None], rows[:, :, None], columns[:, None, :]]
    return replace(batch, args=(chosen.permute(0, 3, 1, 2).contiguous(), *batch.args[1:]))


def halved(batch: Batch) -> Batch:
    """The pictures averaged down to half their height and width; raises `BadOption` for inputs that are none."""
    return replace(batch, args=(F.avg_pool2d(_pictures(batch), 2), *batch.args[1:]))


def _pictures(batch: Batch) -> torch.Tensor:
    """The first argument, where it holds pictures."""
    pictures = batch.args[0] if batch.args else None
    if not isinstance(pictures, torch.Tensor) or pictures.dim() != 4 or not pictures.is_floating_point():
        shape = list(pictures.shape) if isinstance(pictures, torch.Tensor) else type(pictures).__name__
        raise BadOption(
            f"flip, shift and coarse change pictures [samples, channels, height, width], not {shape}; leave them out"
        )
    return pictures
