"""Capture streams in batches whose weight is bounded, and batches do not change what is measured."""

from __future__ import annotations

import torch
from torch import nn

from featalign.align.neuron import cross_moments
from featalign.spaces import Site
from featalign.spaces.capture import BATCH_BYTES, fitting_batch


def test_batches_shrink_as_activations_grow() -> None:
    small, large = nn.Sequential(nn.Linear(4, 8)), nn.Sequential(nn.Conv2d(3, 64, 3, padding=1))
    site = Site("0", "out")
    assert fitting_batch(small, torch.randn(10, 4), [site]) == 2048
    size = fitting_batch(large, torch.randn(4, 3, 64, 64), [site])
    assert 16 <= size < 2048 and size * 64 * 64 * 64 * 4 <= BATCH_BYTES


def test_moments_do_not_depend_on_the_batch(monkeypatch) -> None:
    torch.manual_seed(0)
    a, b, probe = nn.Sequential(nn.Linear(4, 8)), nn.Sequential(nn.Linear(4, 8)), torch.randn(100, 4)
    whole = cross_moments(a, b, probe, [Site("0", "out")])[0]
    monkeypatch.setattr("featalign.align.neuron.fitting_batch", lambda *_: 7)
    parts = cross_moments(a, b, probe, [Site("0", "out")])[0]
    assert torch.allclose(whole.squared_distances, parts.squared_distances, atol=1e-9)
