"""The nonlinearity of a space is recorded as it is, whatever it is, and evaluated on any pre-activations."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from featalign.errors import SpaceMismatch
from featalign.spaces import Space, apply_nonlinearity, check, collect, trace


class Functional(nn.Module):
    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]):
        super().__init__()
        self.function, self.a, self.b = function, nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.function(self.a(x)))


FUNCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    **{name: getattr(F, name) for name in ("relu", "gelu", "silu", "softplus", "hardswish", "elu", "leaky_relu")},
    **{name: getattr(F, name) for name in ("selu", "celu", "relu6", "softsign", "tanhshrink", "logsigmoid")},
    "tanh": torch.tanh,
    "mish": F.mish,
    "hardtanh": F.hardtanh,
    "sigmoid": torch.sigmoid,
    "gelu-tanh": lambda x: F.gelu(x, approximate="tanh"),
    "softplus-beta": lambda x: F.softplus(x, beta=3, threshold=5),
    "gelu-by-hand": lambda x: 0.5 * x * (1 + torch.tanh(0.79788456 * (x + 0.044715 * x**3))),
    "silu-by-hand": lambda x: x * torch.sigmoid(x),
    "where": lambda x: torch.where(x > 0, x, 0.2 * x),
    "squared-relu": lambda x: x.relu().square(),
    "in-place": lambda x: x.mul_(1.5).add_(0.3).relu_(),
    "snake": lambda x: x + torch.sin(3 * x) ** 2 / 3,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_nonlinearities_are_replayed_exactly(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    module, x = Functional(FUNCTIONS[name]).to(dtype), 2 * torch.randn(50, 5, dtype=dtype)
    graph = trace(module, x)
    space = graph["a"]
    assert space.pre is not None and space.pre != space.post and space.nonlinearity
    held = collect(module, x, [space.before, space.after])
    assert torch.equal(apply_nonlinearity(space, held[space.before]), held[space.after])
    pre = torch.randn(4, 3, dtype=torch.float64)  # of any shape and type
    assert torch.allclose(apply_nonlinearity(space, pre), FUNCTIONS[name](pre.clone()), atol=1e-12)
    assert check(graph, module, x).error < 1e-9


def test_learned_slopes_linear_spaces_and_gates() -> None:
    x = torch.randn(6, 5)
    one, many = (nn.Sequential(nn.Linear(5, 8), nn.PReLU(n), nn.Linear(8, 3)) for n in (1, 8))
    pre = torch.randn(6, 8)
    linear = nn.Sequential(nn.Linear(5, 8), nn.Linear(8, 3))
    assert torch.equal(apply_nonlinearity(trace(linear, x)["0"], pre), pre)
    for space in (trace(one, x)["0"], trace(many, x)["0"], Space("by hand", 3)):
        with pytest.raises(SpaceMismatch, match=r"no elementwise function|is seen at no module"):
            apply_nonlinearity(space, pre)
