"""ReLU codes under an L1 penalty (Bricken et al. 2023)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from featalign.dictionaries.architectures.base import Architecture, Tensors, architecture


@architecture("relu")
class ReluL1(Architecture):
    """ReLU codes under an L1 penalty (Bricken et al. 2023); the coefficient is steered towards L0 = k."""

    inference = "standard"
    steered = True
    pointwise = True
    refit = "gains"

    def activate(self, pre: torch.Tensor, params: Tensors) -> torch.Tensor:
        return pre.relu()

    def select(self, pre: torch.Tensor) -> np.ndarray:
        return np.flatnonzero((pre > 0).numpy())

    def backward(
        self, dz: torch.Tensor, pre: torch.Tensor, codes: torch.Tensor, params: Tensors, grads: Tensors
    ) -> torch.Tensor:
        return (dz + self.penalty / pre.shape[1]) * (codes > 0)

    @classmethod
    def reference(cls, width: int, k: float, coefficient: float) -> tuple[str, dict[str, Any]] | None:
        return "standard", {"l1_coefficient": coefficient}
