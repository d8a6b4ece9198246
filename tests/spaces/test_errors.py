"""Bad input: each kind has its own message, and partial tracing is offered."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from featalign.errors import SpaceMismatch, TraceError
from featalign.spaces import check, moved, rebuilt, trace
from featalign.spaces.check import Transform


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 7), nn.Linear(7, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.a(x).relu()
        return self.b(hidden if hidden.sum() > 0 else -hidden)


def test_control_flow_on_data() -> None:
    with pytest.raises(TraceError, match=r"depends on the data.*partial=True"):
        trace(Branching(), torch.randn(3, 5))
    module, x = Branching(), torch.randn(3, 5)
    graph = trace(module, x, partial=True)
    assert any("only the branch" in warning for warning in graph.warnings)
    assert graph["a"].size == 7 and not graph["a"].pinned
    check(graph, module, x)


class Resizing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 6), nn.Linear(6, 4), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.a(x).relu()
        strided = hidden.as_strided((hidden.shape[0], 6), (6, 1)) if hidden.shape[0] < 0 else torch.fft.fft(hidden).real
        return self.c(self.b(strided).relu())


def test_unknown_operation_is_pinned_and_named() -> None:
    module, x = Resizing(), torch.randn(3, 5)
    graph = trace(module, x)
    assert any("fft" in warning and "keep their basis" in warning for warning in graph.warnings)
    assert graph["a"].pinned and not graph["b"].pinned
    check(graph, module, x)


class WritesInPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.zeros(len(x), 6, dtype=x.dtype)
        hidden[:, :6] = self.a(x).relu()
        hidden.resize_(len(x), 6)
        return self.b(hidden)


def test_in_place_writes_never_give_a_wrong_graph() -> None:
    module, x = WritesInPlace(), torch.randn(3, 5)
    assert check(trace(module, x), module, x).error < 1e-6


def test_module_that_fails_on_the_example() -> None:
    with pytest.raises(
        TraceError, match=r"'1' failed on the example input float32 \[3, 5\].*pass an input of the shape"
    ):
        trace(nn.Sequential(nn.ReLU(), nn.Linear(4, 2)), torch.randn(3, 5))
    with pytest.raises(TraceError, match="holds no tensor"):
        trace(nn.Linear(4, 2), ())


@pytest.mark.parametrize("kind", ["frozen", "bfloat16", "training", "grad-off"])
def test_frozen_and_half_precision_modules(kind: str) -> None:
    module = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 3))
    example = torch.randn(3, 5)
    if kind == "frozen":
        module.requires_grad_(False)
    if kind == "bfloat16":
        module, example = module.bfloat16(), example.bfloat16()
    module.train(kind == "training")
    graph = trace(module, example)
    assert graph["0"].size == 6 and check(graph, module, example).error < 1e-6
    assert module.training == (kind == "training")
    assert {p.dtype for p in module.parameters()} == {example.dtype}


def test_maps_that_do_not_fit() -> None:
    module = nn.Sequential(nn.Linear(5, 6, bias=False), nn.ReLU(), nn.Linear(6, 3))
    graph = trace(module, torch.randn(3, 5))
    with pytest.raises(SpaceMismatch, match="'0' has 6 units"):
        moved(module, graph, {"0": Transform(torch.eye(5), torch.eye(5))})
    with pytest.raises(SpaceMismatch, match=r"no space 'fc9'.*input"):
        moved(module, graph, {"fc9": Transform(torch.eye(5), torch.eye(5))})
    with pytest.raises(SpaceMismatch, match="no bias writes"):
        moved(module, graph, {"0": Transform(torch.eye(6), torch.eye(6), torch.ones(6))})
    with pytest.raises(SpaceMismatch, match=r"misses '0.weight'"):
        rebuilt(module, {})
