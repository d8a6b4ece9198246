"""JumpReLU: a learned threshold per latent (Rajamanoharan et al. 2024, arXiv:2407.14435)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from featalign.dictionaries.architectures.base import Architecture, Tensors, architecture


@architecture("jumprelu")
class JumpReLU(Architecture):
    """A learned threshold per latent under an L0 penalty (Rajamanoharan et al. 2024, arXiv:2407.14435).

    Straight-through gradients reach the threshold alone, through a rectangle of half-width `bandwidth / 2`.
    """

    inference = "jumprelu"
    latents = ("b_enc", "threshold")
    steered = True
    ease = 0.1

    @property
    def bandwidth(self) -> float:
        """In normalised coordinates, where a vector of activations has length about `sqrt(n)`."""
        return 0.05 * self.units**0.5

    def parameters(self) -> Tensors:
        return {"threshold": torch.full((self.stack, self.width), self.bandwidth)}

    def activate(self, pre: torch.Tensor, params: Tensors) -> torch.Tensor:
        return pre * (pre > params["threshold"][:, None])

    def backward(
        self, dz: torch.Tensor, pre: torch.Tensor, codes: torch.Tensor, params: Tensors, grads: Tensors
    ) -> torch.Tensor:
        threshold = params["threshold"][:, None]
        near = ((pre - threshold).abs() < self.bandwidth / 2) / self.bandwidth
        grads["threshold"] -= (near * (threshold * dz + self.penalty / pre.shape[1])).sum(1)
        return dz * (codes > 0)

    def revive(self, s: int, dead: torch.Tensor, grads: Tensors) -> None:
        grads["threshold"][s, dead] += 1e-3  # a threshold out of reach comes down

    def project(self, params: Tensors) -> None:
        params["threshold"].clamp_min_(0)

    def finish(self, pre: Callable[[], torch.Tensor], s: int, params: Tensors) -> Tensors:
        return {**super().finish(pre, s, params), "threshold": params["threshold"][s]}

    @classmethod
    def codes(cls, pre: torch.Tensor, tensors: Mapping[str, torch.Tensor], k: float) -> torch.Tensor:
        return pre.relu() * (pre > tensors["threshold"])

    @classmethod
    def reference(cls, width: int, k: float, coefficient: float) -> tuple[str, dict[str, Any]] | None:
        return "jumprelu", {"l0_coefficient": coefficient}
