"""Heads are matched before anything inside them is compared."""

from __future__ import annotations

import pytest
import torch

from featalign.align.pair import Pair
from featalign.clients import Cohort, build
from featalign.clients.families.vit import ViTConfig
from featalign.errors import SpaceMismatch
from featalign.fuse import FusionProblem, solve
from featalign.spaces import CrossMoments, Symmetry, moved, rebuilt, trace
from featalign.spaces.capture import outputs_of
from featalign.spaces.check import output_change, random_transform
from tests.spaces.zoo import shake


@pytest.fixture(scope="module")
def planted() -> FusionProblem:
    """A six-layer encoder and itself with heads, units, stream and the bases inside heads in another order."""
    torch.manual_seed(0)
    module = shake(build(ViTConfig(size=8, patch=2, width=24, depth=6, heads=4, hidden=30), 0))
    x = torch.randn(40, 3, 8, 8)
    graph, generator = trace(module, x[:2]), torch.Generator().manual_seed(3)
    maps = {
        space.name: random_transform(
            space.size,
            Symmetry.ORTHOGONAL if space.name.endswith((".qk", ".ov")) else Symmetry.PERMUTATION,
            generator,
        )
        for space in graph.hidden
    }
    twin = rebuilt(module, moved(module, graph, maps))
    return FusionProblem(Cohort.of([module, twin], x, task="regression"))


@pytest.mark.parametrize("method", ["ot-acts", "ot-wts", "weight-matching"])
def test_a_planted_order_of_heads_is_found(planted: FusionProblem, method: str) -> None:
    x = planted.cohort.probe.tensor
    fused = solve(planted, method).module
    assert output_change(outputs_of(planted.clients[1], x), outputs_of(fused, x)) < 1e-4


def test_a_stream_is_read_at_every_depth(planted: FusionProblem) -> None:
    pair = Pair(planted.pair(0), planted.graph.hidden[0].name)
    assert len(planted.graph[pair.name].whole_sites) > 6
    assert pair.moments.count > 6 * planted.pair(0).moments[pair.name].count


def test_costs_need_no_covariances_within_a_stream() -> None:
    a, b = (torch.randn(50, n, generator=torch.Generator().manual_seed(n)) for n in (4, 6))
    whole, slim = CrossMoments().update(a, b), CrossMoments(within=False).update(a[:20], b[:20]).update(a[20:], b[20:])
    assert torch.allclose(whole.squared_distances, slim.squared_distances)
    assert torch.allclose(whole.correlation, slim.correlation)
    assert torch.allclose(whole.covariance_aa.diagonal(), slim.variance_a)
    with pytest.raises(SpaceMismatch, match="variances"):
        slim.covariance_bb
