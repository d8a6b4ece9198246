"""Rows of activations in the coordinates that dictionaries are trained in."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from featalign.dictionaries.rows import CHUNK, Rows, place
from featalign.errors import NotFinite
from featalign.spaces.moments import Moments

MOMENTS = 2**27  # entries that mean and scale are taken over
LARGEST = 1e19  # whose square float32 holds


class Normalised:
    """Rows of activations `[N, n]` as `(a - mean) / scale`, read when asked for: a memory map stays on disk."""

    def __init__(self, values: Rows, rows: torch.Tensor, metadata: Mapping[str, Any]):
        self.values = values
        parts = rows[: max(1, MOMENTS // values.shape[1])].split(max(1, CHUNK // values.shape[1]))
        first = values[parts[0]].float()
        if len(parts) == 1:
            self.mean = first.mean(0)
            scale = float((first - self.mean).pow(2).mean().sqrt())
        else:
            moments = Moments()
            for part in parts:
                moments.update(values[part])
            self.mean, scale = moments.mean.float(), float(moments.variance.mean().sqrt())
        largest = float(first.abs().max())
        if not math.isfinite(scale) or largest > LARGEST:
            raise NotFinite(f"{place(metadata)}: squares of activations up to {largest:.1e} overflow; scale them down")
        self.scale = max(scale, 1e-12)

    def __getitem__(self, rows: torch.Tensor) -> torch.Tensor:
        return (self.values[rows].float() - self.mean) / self.scale
