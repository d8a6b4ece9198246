"""Maps applied to networks: duplicated units fuse exactly at any widths, shifts reach biases, concatenations hold."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from featalign.spaces import Site, SpaceGraph, collect, moved, rebuilt, trace
from featalign.spaces.capture import outputs_of
from featalign.spaces.check import Transform
from tests.spaces.zoo import ZOO, shake


def duplication(size: int, times: int) -> Transform:
    """Every unit `times` times: `O = diag(1/b) T^T`, `R = diag(1/a) T` of the plan between a layer and its copies."""
    out = torch.eye(size, dtype=torch.float64).repeat_interleave(times, 0)
    return Transform(out, out.T / times)


@pytest.mark.parametrize("name", ["mlp", "vgg11", "vgg11-batch-norm", "resnet20-batch", "resnet20-none", "resnet18"])
def test_duplicated_units_at_any_width(name: str) -> None:
    torch.manual_seed(0)
    module, example = ZOO[name]()
    shake(module)
    graph = trace(module, example)
    wide = rebuilt(module, moved(module, graph, {s.name: duplication(s.size, 2) for s in graph.hidden}))
    assert torch.allclose(outputs_of(wide, example)[0], outputs_of(module, example)[0], atol=2e-4, rtol=2e-4)
    wider = trace(wide, example)
    assert [(s.name, s.size) for s in wider.hidden] == [(s.name, 2 * s.size) for s in graph.hidden]
    back = {s.name: Transform(duplication(s.size, 2).into, duplication(s.size, 2).out) for s in graph.hidden}
    again = rebuilt(wide, moved(wide, wider, back))
    for a, b in zip(again.state_dict().values(), module.state_dict().values(), strict=True):
        assert torch.allclose(a.double(), b.double(), atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(2, 5), st.integers(0, 10_000))
def test_axes_of_products_and_sums(groups: int, repeat: int, size: int, seed: int) -> None:
    """A concatenation of `groups` copies of a space, each repeated: moving weights moves what they compute."""
    from featalign.spaces.apply import moved_tensor, pieces_of
    from featalign.spaces.graph import Axis, Space

    torch.manual_seed(seed)
    axes = tuple(Axis("w", 0, repeat, 1, k * size * repeat) for k in range(groups))
    graph = SpaceGraph((Space("s", size, writers=axes),))
    weight = torch.randn(groups * size * repeat, 3, dtype=torch.float64)
    out = torch.randn(size + 1, size, dtype=torch.float64)
    result = moved_tensor(weight, "w", pieces_of(graph, {"s": Transform(out, out.T)}))
    expected = torch.einsum("ij,gjrc->girc", out, weight.reshape(groups, size, repeat, 3)).reshape(-1, 3)
    assert torch.allclose(result, expected)


def test_shift_moves_pre_activations() -> None:
    module = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    graph, x = trace(module, torch.randn(2, 4)), torch.randn(8, 4)
    shift, out = torch.randn(5), torch.randn(5, 5)
    fused = rebuilt(module, moved(module, graph, {"0": Transform(out, torch.linalg.inv(out), shift)}))
    site = Site("0")
    before, after = collect(module, x, [site])[site], collect(fused, x, [site])[site]
    assert torch.allclose(after, before @ out.T + shift, atol=1e-4)


def test_capture_of_named_dimensions_and_in_place_nonlinearities() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(16, 2))
    x = torch.randn(5, 3, 4, 4)
    graph = trace(module.eval(), x[:2])
    space = graph["0"]
    assert space.pre == Site("1") and space.post is not None
    held = collect(module, x, [space.pre, space.post, Site("3", "out", 1, 4, 4)])
    pre, post, flat = held.values()
    assert pre.shape == post.shape == (20, 4) and (pre < 0).any()
    assert torch.equal(post, pre.relu()) and torch.equal(flat, post)
