"""The multilayer perceptron of OTFusion, with TransformerLens hook points around every nonlinearity."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from transformer_lens import HookedRootModule
from transformer_lens.hook_points import HookPoint


class MLP(HookedRootModule):
    """Inputs `[N, ...]` to logits `[N, outputs]` through `fc1`, `fc2`, ..., the last of which is the head.

    `hook_pre1 [N, hidden]` sees the first hidden layer before its nonlinearity `act1`, `hook_post1` after it, and so
    on. Initialisation is that of `nn.Linear`. torch.fx traces it when `HookPoint` is a leaf.
    """

    def __init__(
        self,
        inputs: int,
        hidden: Sequence[int],
        outputs: int,
        bias: bool = False,
        activation: type[nn.Module] = nn.ReLU,
    ):
        super().__init__()
        self.depth = len(hidden)
        widths = (inputs, *hidden, outputs)
        for k in range(1, len(widths)):
            self.add_module(f"fc{k}", nn.Linear(widths[k - 1], widths[k], bias=bias))
        for k in range(1, len(widths) - 1):
            self.add_module(f"hook_pre{k}", HookPoint())
            self.add_module(f"act{k}", activation())
            self.add_module(f"hook_post{k}", HookPoint())
        self.setup()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Logits `[N, outputs]` of inputs `[N, ...]`."""
        x = torch.flatten(inputs, 1)
        for k in range(1, self.depth + 1):
            x = self.get_submodule(f"hook_pre{k}")(self.get_submodule(f"fc{k}")(x))
            x = self.get_submodule(f"hook_post{k}")(self.get_submodule(f"act{k}")(x))
        return self.get_submodule(f"fc{self.depth + 1}")(x)
