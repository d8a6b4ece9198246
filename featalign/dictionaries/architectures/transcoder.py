"""Transcoder: ReLU units on pre-activations that write post-activations (Dunefsky et al. 2024, arXiv:2406.11944)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from featalign.dictionaries.architectures.base import architecture
from featalign.dictionaries.architectures.relu import ReluL1


@architecture("transcoder")
class Transcoder(ReluL1):
    """ReLU units on linear functions of the pre-activations that write the post-activations (Dunefsky et al. 2024).

    `relu(a) ~ D relu(E a + c) + b`: linear in the layer's input before the ReLU, so `E W` folds into the layer. What is
    folded must return the layer first of all, hence the free least-squares decoder, and gradients as they are: their
    norm grows with the outputs, so that a bound fitted to small layers would clip every step of a wide one.
    """

    inference = "transcoder"
    transcodes = True
    clips = False
    refit = "decoder"

    @classmethod
    def config(cls, tensors: Mapping[str, torch.Tensor], k: float) -> dict[str, Any]:
        return {"d_out": tensors["W_dec"].shape[1]}

    @classmethod
    def reference(cls, width: int, k: float, coefficient: float) -> tuple[str, dict[str, Any]] | None:
        return None
