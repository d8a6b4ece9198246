"""Inputs that a page looks through: where each row of activations comes from, and how an input is shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isqrt
from typing import Any

import numpy as np
import torch
from torch import nn

from featalign.data.batch import Batch
from featalign.data.inputs import Inputs
from featalign.data.task import Task, labels_of
from featalign.plots.sprites import sprite_sheet
from featalign.spaces.capture import Held, collect
from featalign.spaces.graph import Site

LIMIT = 4000  # inputs looked through
ROWS = 200_000  # rows of activations held for them
AROUND = 6  # tokens shown on each side of one
LINE = (32, 96)  # height and width of a drawn signal


@dataclass(frozen=True)
class Examples:
    """Some inputs with their activations in one network after another.

    Attributes:
        batches: the inputs.
        index: `[samples]` their places in the evaluation data.
        labels: `[samples]` one class each, where the task has classes.
    """

    batches: tuple[Batch, ...]
    index: torch.Tensor
    labels: torch.Tensor | None

    @classmethod
    def of(cls, inputs: Inputs, task: Task, module: nn.Module, sites: Sequence[Site], seed: int) -> Examples:
        """At most `LIMIT` inputs, drawn where they can be, with at most `ROWS` rows at the busiest site."""
        busiest = max(len(rows) for rows in collect(module, [inputs.example(1)], sites).values())
        count = max(50, min(LIMIT, ROWS // busiest))
        if inputs.sized:
            index = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(seed))[:count]
            batches = list(inputs.subset(index))
        else:
            batches, total = [], 0
            for batch in inputs:
                batches.append(batch.cut(count - total))
                total += batches[-1].size
                if total >= count:
                    break
            index = torch.arange(total)
        return cls(tuple(batches), index, labels_of(task, batches))

    @property
    def pictures(self) -> bool:
        """Whether an input is shown as a picture, whatever the position."""
        return self.batches[0].tokens is None and is_picture(self.batches[0].tensors[0][0])

    def activations(self, module: nn.Module, sites: Sequence[Site]) -> Held:
        """`[rows, units]` at every site."""
        return collect(module, list(self.batches), sites)

    def origins(self, module: nn.Module, site: Site, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
        """For every row of a site the sample and the position it belongs to; None where that cannot be told."""
        masks = [batch.mask for batch in self.batches]
        if all(mask is not None for mask in masks) and len(rows) == sum(int(m.sum()) for m in masks if m is not None):
            places, start = [], 0
            for mask in masks:
                assert mask is not None
                found = mask.nonzero()
                places.append(found + torch.tensor([start, 0], device=found.device))
                start += len(mask)
            both = torch.cat(places)
            return both[:, 0], both[:, 1]
        positions, rest = divmod(len(rows), len(self.index))
        if rest:
            return None
        alone = collect(module, [self.batches[0].cut(1)], [site])[site]
        if len(alone) != positions or not torch.allclose(alone, rows[:positions], rtol=1e-3, atol=1e-4):
            return None
        samples = torch.arange(len(self.index)).repeat_interleave(positions)
        return samples, torch.arange(positions).repeat(len(self.index))

    def shown(self, keys: Sequence[tuple[int, int]], tokenizer: Any = None) -> tuple[list[str | None], dict[str, Any]]:
        """Texts of (sample, position) pairs, or None for each and a sheet of pictures in their order."""
        found = [self._sample(sample) for sample, _ in keys]
        if found and found[0].tokens is not None:
            texts = [_window(batch, position, tokenizer) for batch, (_, position) in zip(found, keys)]
            return list(texts), sprite_sheet(np.zeros((0, 1, 1)))
        tensors = [batch.tensors[0][0].detach().cpu().float() for batch in found]
        if tensors and not is_picture(tensors[0]):
            whole = tensors[0].shape[-1] if tensors[0].dim() > 1 else 0
            marks = [position if position and position < whole else None for _, position in keys]
            tensors = [torch.from_numpy(drawn(tensor.numpy(), mark)) for tensor, mark in zip(tensors, marks)]
        elif tensors and tensors[0].dim() == 3 and tensors[0].shape[0] not in (1, 3):
            tensors = [tensor.mean(0) for tensor in tensors]
        return [None] * len(keys), sprite_sheet(torch.stack(tensors).numpy() if tensors else np.zeros((0, 1, 1)))

    def _sample(self, sample: int) -> Batch:
        for batch in self.batches:
            if sample < batch.size:
                chosen = batch.map(lambda tensor: tensor[sample : sample + 1])  # noqa: B023 - called at once
                return replace(chosen, targets=None)
            sample -= batch.size
        raise IndexError(sample)


def is_picture(tensor: torch.Tensor) -> bool:
    """Whether one input is shown as a picture: `[C, H, W]`, `[H, W]` nearly square, or a square one flattened."""
    if tensor.dim() == 3:
        return True
    if tensor.dim() == 2:
        return max(tensor.shape) <= 2 * min(tensor.shape) and min(tensor.shape) >= 8
    return tensor.dim() == 1 and len(tensor) >= 64 and isqrt(len(tensor)) ** 2 == len(tensor)


def drawn(values: np.ndarray, mark: int | None = None) -> np.ndarray:
    """A vector, or the channels of a signal `[..., positions]`, as lines `[height, width]`; `mark` is a position."""
    height, width = LINE
    lines = values.reshape(-1, values.shape[-1])[:4] if values.ndim > 1 else values.reshape(1, -1)
    low, high = float(np.nanmin(lines)), float(np.nanmax(lines))
    picture = np.zeros((height, width), dtype=np.float32)
    if mark is not None:
        picture[:, round(mark / max(lines.shape[1] - 1, 1) * (width - 1))] = 0.35
    for k, line in enumerate(lines):
        at = np.interp(np.linspace(0, max(len(line) - 1, 1), width), np.arange(len(line)), line)
        level = ((high - at) / max(high - low, 1e-9) * (height - 1)).round().astype(int)
        for x in range(width):
            before = level[max(x - 1, 0)]
            picture[min(before, level[x]) : max(before, level[x]) + 1, x] = 1 - 0.18 * k
    return picture


def _window(batch: Batch, position: int, tokenizer: Any) -> str:
    """A token in square brackets among its neighbours, as text where the tokenizer can decode."""
    assert batch.tokens is not None
    tokens = batch.tokens[0].tolist()
    start = max(0, position - AROUND)
    parts = (tokens[start:position], tokens[position : position + 1], tokens[position + 1 : position + 1 + AROUND])
    decode = getattr(tokenizer, "decode", None)
    before, own, after = (decode(part) if decode and part else " ".join(map(str, part)) for part in parts)
    return f"{'…' * (start > 0)}{before} [{own}] {after}{'…' * (position + 1 + AROUND < len(tokens))}".strip()
