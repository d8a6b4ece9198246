"""Ground costs: samples, moments and blocks say the same; nulls have no pairs; semantic cost bounds Wasserstein."""

import numpy as np
import pytest
import torch

from featalign.spaces.moments import CrossMoments
from featalign.transport import COSTS, SemanticMoments, ground_cost, null_threshold, solve

rng = np.random.default_rng(0)
A = rng.standard_normal((300, 7)) + 5
B = np.concatenate([A[:, ::-1] * 2 + 0.3 * rng.standard_normal((300, 7)), rng.standard_normal((300, 2))], axis=1)
A[:, 2], B[:, 8] = 3.0, 0.0


@pytest.mark.parametrize("name", ["squared", "euclidean", "cosine", "correlation"])
def test_moments_samples_and_blocks_agree(name):
    whole = ground_cost(name, A, B).dense()
    moments = CrossMoments()
    for part in np.array_split(np.arange(300), 4):
        moments.update(torch.from_numpy(A[part]), torch.from_numpy(B[part]))
    np.testing.assert_allclose(ground_cost(name, moments).dense(), whole, atol=1e-10)
    narrow = ground_cost(name, torch.from_numpy(A).float(), torch.from_numpy(B).float())
    assert narrow.rows(slice(0, 2)).dtype == np.float32
    np.testing.assert_allclose(narrow.rows(np.array([1, 3])), whole[[1, 3]], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(ground_cost(name, A, B).transposed().dense(), whole.T, atol=1e-12)


def test_definitions():
    squared = np.array([[np.mean((a - b) ** 2) for b in B.T] for a in A.T])
    np.testing.assert_allclose(ground_cost("squared", A, B).dense(), squared, atol=1e-9)
    np.testing.assert_allclose(ground_cost("euclidean", A, B).dense(), np.sqrt(squared), atol=1e-9)
    live = np.corrcoef(A[:, :2].T, B[:, :8].T)[:2, 2:]
    np.testing.assert_allclose(ground_cost("correlation", A, B).dense()[:2, :8], 1 - live, atol=1e-12)
    cosine = (A.T @ B)[:, :8] / np.outer(np.linalg.norm(A, axis=0), np.linalg.norm(B[:, :8], axis=0))
    np.testing.assert_allclose(ground_cost("cosine", A, B).dense()[:, :8], 1 - cosine, atol=1e-12)


def test_constant_units_are_uncorrelated_with_everything():
    cost = ground_cost("correlation", A, B).dense()
    np.testing.assert_allclose(cost[2], 1.0)
    np.testing.assert_allclose(cost[:, 8], 1.0)


def test_weights_follow_the_map_below():
    below = np.linalg.qr(rng.standard_normal((4, 4)))[0]
    rows = rng.standard_normal((6, 4))
    cost = ground_cost("weights", rows, rows @ below, previous=below).dense()
    np.testing.assert_allclose(np.diag(cost), 0, atol=1e-6)
    np.testing.assert_allclose(cost, np.linalg.norm(rows[:, None] - rows[None], axis=2), atol=1e-6)


def test_semantic_cost_is_streaming_scale_free_and_a_lower_bound():
    import ot

    codes_a, codes_b = np.abs(rng.standard_normal((60, 4))), np.abs(rng.standard_normal((60, 5)))
    reference = rng.standard_normal((60, 3))
    cost = ground_cost("semantic", codes_a, codes_b, reference).dense()
    moments = SemanticMoments()
    for part in (slice(0, 20), slice(20, 60)):
        moments.update(codes_a[part], codes_b[part], reference[part])
    np.testing.assert_allclose(ground_cost("semantic", moments).dense(), cost, atol=1e-12)
    np.testing.assert_allclose(ground_cost("semantic", 7 * codes_a, codes_b, reference).dense(), cost, atol=1e-12)
    between = ot.dist(reference, reference)
    for i in range(4):
        for j in range(5):
            exact = solve(between, codes_a[:, i] / codes_a[:, i].sum(), codes_b[:, j] / codes_b[:, j].sum()).value
            assert cost[i, j] <= exact + 1e-12


def test_semantic_cost_by_hand():
    codes, reference = np.array([[1.0, 0.0], [3.0, 2.0], [0.0, 2.0]]), np.array([[0.0], [4.0], [8.0]])
    # latent 0: mean 3, variance 3; latent 1: mean 6, variance 4
    cost = ground_cost("semantic", codes, codes, reference).dense()
    between = (6 - 3) ** 2 + (2 - 3**0.5) ** 2
    np.testing.assert_allclose(cost, [[0, between], [between, 0]], atol=1e-12)
    silent = ground_cost(
        "semantic", np.zeros((3, 1)), codes, reference
    ).dense()  # as the whole: mean 4, variance 32 / 3
    np.testing.assert_allclose(silent[0, 0], 1 + ((32 / 3) ** 0.5 - 3**0.5) ** 2)


def test_null_refuses_nineteen_in_twenty_chance_matches():
    a, b = rng.standard_normal((400, 200)), rng.standard_normal((400, 200))
    threshold = null_threshold(ground_cost("correlation", a, b).null(seed=0))
    best = ground_cost("correlation", a, b).dense().min(axis=1)
    assert 0.0 <= (best < threshold).mean() < 0.12
    pair = ground_cost("correlation", a, a).null(seed=1).dense()
    assert pair.min() > 0.5  # shuffled against itself: no unit finds its twin


def test_every_named_cost_feeds_the_solver():
    assert set(COSTS) == {"squared", "euclidean", "cosine", "correlation", "weights", "semantic"}
    for name in ("squared", "euclidean", "cosine", "correlation"):
        plan = solve(ground_cost(name, A, B))
        assert plan.shape == (7, 9) and plan.gap < 1e-9
