"""The traced graph of a plain network is the one a person would write."""

import torch
from torch import nn

from featalign.spaces import Axis, Layer, Site, Symmetry, check, trace


def test_mlp_spaces_layers_and_sites() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 9), nn.GELU(), nn.Linear(9, 3))
    x = torch.randn(4, 4, 4)
    graph = trace(module, x)
    assert [(s.name, s.size, s.symmetry) for s in graph.spaces] == [
        ("input", 16, Symmetry.PINNED),
        ("1", 12, Symmetry.SCALED_PERMUTATION),
        ("3", 9, Symmetry.PERMUTATION),
        ("5", 3, Symmetry.PINNED),
    ]
    assert graph["1"].writers == (Axis("1.weight", 0), Axis("1.bias", 0))
    assert graph["1"].readers == (Axis("3.weight", 1),)
    assert (graph["1"].pre, graph["1"].post) == (Site("1"), Site("2"))
    assert graph.layers == (Layer("1", "input", "1"), Layer("3", "1", "3"), Layer("5", "3", "5"))
    assert graph.warnings == ()
    assert check(graph, module, x).error < 1e-12
