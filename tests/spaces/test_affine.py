"""Second moments of what a layer multiplies, without its patches; layers whose weight is not theirs are refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations, weight_norm

from featalign.errors import SpaceMismatch
from featalign.spaces import affine


@settings(max_examples=60, deadline=None)
@given(
    st.booleans(), st.integers(1, 5), st.integers(1, 4), st.integers(1, 3), st.integers(0, 4), st.integers(6, 14),
    st.sampled_from(["zeros", "circular", "reflect"]), st.integers(0, 10_000),
)  # fmt: skip
def test_gram_and_cross_equal_those_of_patches(flat, kernel, dilation, stride, padding, size, mode, seed) -> None:
    torch.manual_seed(seed)
    size = max(size, dilation * (kernel - 1) + 1, padding + 1)
    kind = nn.Conv1d if flat else nn.Conv2d
    layer = kind(15, 4, kernel, stride, padding, dilation, padding_mode=mode)
    x = 3 + torch.randn(2, 15, *((size,) if flat else (size, size + 1)))
    rows = affine.rows(layer, x).double()
    ones = torch.cat([rows, torch.ones(len(rows), 1, dtype=rows.dtype)], 1)
    targets = torch.randn(len(rows), 3)
    assert torch.allclose(affine.gram(layer, x), rows.T @ rows, rtol=1e-12)
    assert torch.allclose(affine.gram(layer, x, augmented=True), ones.T @ ones, rtol=1e-12)
    assert torch.allclose(affine.cross(layer, x, targets, augmented=True), ones.T @ targets.double(), rtol=1e-9)
    outputs = layer(x).detach().movedim(1, -1).reshape(-1, 4)
    assert torch.allclose((rows @ affine.matrix(layer).double().T + layer.bias).float(), outputs, atol=1e-3)


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_named_padding(padding: str) -> None:
    layer, x = nn.Conv1d(30, 4, 4, padding=padding, dilation=2), torch.randn(3, 30, 20)
    rows = affine.rows(layer, x)
    assert torch.allclose(rows @ affine.matrix(layer).T + layer.bias, layer(x).movedim(1, -1).flatten(0, 1), atol=1e-5)
    assert torch.allclose(affine.gram(layer, x), rows.double().T @ rows.double(), rtol=1e-12)


class Doubled(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


class Named(nn.Linear):
    pass


def test_only_layers_that_own_a_plain_weight_are_affine() -> None:
    from transformers.pytorch_utils import Conv1D

    assert all(map(affine.is_affine, (nn.Linear(2, 3), Named(2, 3), nn.Conv2d(2, 3, 1), Conv1D(3, 2))))
    grouped, computed = nn.Conv1d(4, 4, 3, groups=2), weight_norm(nn.Linear(2, 3))
    new = parametrizations.weight_norm(nn.Linear(2, 3))
    patched = nn.Linear(2, 3)
    patched.forward = lambda x: x
    for layer in (Doubled(2, 3), grouped, computed, new, patched, nn.ReLU(), nn.Bilinear(2, 2, 2)):
        assert not affine.is_affine(layer)
        with pytest.raises(SpaceMismatch):
            affine.write(layer, torch.zeros(3, 2))
    with pytest.raises(SpaceMismatch, match="remove its parametrization"):
        affine.write(new, torch.zeros(3, 2))
