"""Gated: separate gate and magnitude on shared directions (Rajamanoharan et al. 2024, arXiv:2404.16014)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from featalign.dictionaries.architectures.base import Architecture, Tensors, architecture


@architecture("gated")
class Gated(Architecture):
    """Separate gate and magnitude on shared directions (Rajamanoharan et al. 2024, arXiv:2404.16014).

    The encoder bias is the gate's; the rectified gate reconstructs on its own and pays the L1. The decoder learns from
    that reconstruction too, as in sae-lens; held fixed, as in the paper, it recovers planted dictionaries less well.
    """

    inference = "gated"
    latents = ("b_gate", "b_mag", "r_mag")
    unitless = ("r_mag",)
    steered = True

    def parameters(self) -> Tensors:
        return {name: torch.zeros(self.stack, self.width) for name in ("r_mag", "b_mag")}

    def activate(self, pre: torch.Tensor, params: Tensors) -> torch.Tensor:
        linear = pre - params["b_enc"][:, None]
        magnitude = linear * params["r_mag"].exp()[:, None] + params["b_mag"][:, None]
        return (pre > 0) * magnitude.relu()

    def backward(
        self, dz: torch.Tensor, pre: torch.Tensor, codes: torch.Tensor, params: Tensors, grads: Tensors
    ) -> torch.Tensor:
        active = dz * (codes > 0)
        through = active * params["r_mag"].exp()[:, None]
        grads["r_mag"] += (through * (pre - params["b_enc"][:, None])).sum(1)
        grads["b_mag"] += active.sum(1)
        grads["b_enc"] -= through.sum(1)  # the magnitude does not see the gate's bias
        return through

    def auxiliary(self, pre: torch.Tensor, y: torch.Tensor, params: Tensors, grads: Tensors) -> torch.Tensor | None:
        gate = pre.relu()
        error = torch.baddbmm(params["b_dec"][:, None], gate, params["decoder"]).sub_(y)
        g = error * (2 / (y.shape[1] * y.shape[2]))
        grads["decoder"] += gate.transpose(1, 2) @ g
        grads["b_dec"] += g.sum(1)
        return (g @ params["decoder"].transpose(1, 2) + self.penalty / pre.shape[1]) * (pre > 0)

    def finish(self, pre: Callable[[], torch.Tensor], s: int, params: Tensors) -> Tensors:
        return {"b_gate": params["b_enc"][s], "r_mag": params["r_mag"][s], "b_mag": params["b_mag"][s]}

    @classmethod
    def encode(cls, tensors: Mapping[str, torch.Tensor], k: float, x: torch.Tensor) -> torch.Tensor:
        x = x - tensors["b_dec"]
        gate = x @ tensors["W_enc"] + tensors["b_gate"]
        magnitude = x @ (tensors["W_enc"] * tensors["r_mag"].exp()) + tensors["b_mag"]
        return (gate > 0) * magnitude.relu()

    @classmethod
    def shift(cls, tensors: Tensors, by: torch.Tensor) -> None:
        tensors["b_gate"] = tensors["b_gate"] + by @ tensors["W_enc"]
        tensors["b_mag"] = tensors["b_mag"] + by @ (tensors["W_enc"] * tensors["r_mag"].exp())

    @classmethod
    def reference(cls, width: int, k: float, coefficient: float) -> tuple[str, dict[str, Any]] | None:
        return "gated", {"l1_coefficient": coefficient}
