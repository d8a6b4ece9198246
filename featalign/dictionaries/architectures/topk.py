"""TopK: the k largest pre-activations of each sample (Gao et al. 2024, arXiv:2406.04093)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from featalign.dictionaries.architectures.base import Architecture, Tensors, architecture, kth_largest


@architecture("topk")
class TopK(Architecture):
    """The k largest pre-activations of each sample, where positive (Gao et al. 2024, arXiv:2406.04093)."""

    inference = "topk"
    pointwise = True

    def floor(self, pre: torch.Tensor) -> torch.Tensor:
        """Smallest active value of each sample."""
        return kth_largest(pre, int(self.k)).clamp_min(1e-12)

    def activate(self, pre: torch.Tensor, params: Tensors) -> torch.Tensor:
        return pre * (pre >= self.floor(pre))

    def select(self, pre: torch.Tensor) -> np.ndarray:
        return np.flatnonzero((pre >= self.floor(pre)).numpy())

    @classmethod
    def codes(cls, pre: torch.Tensor, tensors: Mapping[str, torch.Tensor], k: float) -> torch.Tensor:
        values, indices = pre.topk(min(int(k), pre.shape[-1]), dim=-1, sorted=False)
        return torch.zeros_like(pre).scatter_(-1, indices, values.relu())

    @classmethod
    def config(cls, tensors: Mapping[str, torch.Tensor], k: float) -> dict[str, Any]:
        return {"k": int(k), "rescale_acts_by_decoder_norm": False}

    @classmethod
    def reference(cls, width: int, k: float, coefficient: float) -> tuple[str, dict[str, Any]] | None:
        return "topk", {"k": int(k)}
