"""BatchTopK: the `k * batch` largest pre-activations of a batch (Bussmann et al. 2024, arXiv:2412.06410)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from featalign.dictionaries.architectures.base import Tensors, architecture, kth_largest
from featalign.dictionaries.architectures.jumprelu import JumpReLU
from featalign.dictionaries.architectures.topk import TopK


@architecture("batchtopk")
class BatchTopK(TopK):
    """The `k * batch` largest of a batch (Bussmann et al. 2024, arXiv:2412.06410); a threshold at inference.

    The threshold is the quantile of the training pre-activations at which L0 is k, not a moving average.
    """

    inference = "jumprelu"
    latents = ("b_enc", "threshold")

    def floor(self, pre: torch.Tensor) -> torch.Tensor:
        flat = pre.reshape(*pre.shape[:-2], -1)
        return kth_largest(flat, max(1, round(self.k * pre.shape[-2])))[..., None].clamp_min(1e-12)

    def finish(self, pre: Callable[[], torch.Tensor], s: int, params: Tensors) -> Tensors:
        found = pre()
        kth = float(kth_largest(found.reshape(-1), max(1, round(self.k * len(found)))))
        return {**super().finish(pre, s, params), "threshold": torch.full((self.width,), max(kth, 0.0) * (1 - 1e-6))}

    @classmethod
    def codes(cls, pre: torch.Tensor, tensors: Mapping[str, torch.Tensor], k: float) -> torch.Tensor:
        return JumpReLU.codes(pre, tensors, k)

    @classmethod
    def config(cls, tensors: Mapping[str, torch.Tensor], k: float) -> dict[str, Any]:
        return {}

    @classmethod
    def reference(cls, width: int, k: float, coefficient: float) -> tuple[str, dict[str, Any]] | None:
        return "batchtopk", {"k": k}
