"""Gromov transport, barycentres and the universe of K clients."""

import itertools

import numpy as np
import pytest

from featalign.transport import fixed_barycentre, free_barycentre, gromov, ground_cost, solve, universe
from featalign.transport.solvers.gromov import gromov_value


def rotated_dictionary(seed=0, atoms=40, dimension=15):
    rng = np.random.default_rng(seed)
    first = rng.standard_normal((atoms, dimension))
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    order = rng.permutation(atoms)
    turn = np.linalg.qr(rng.standard_normal((dimension, dimension)))[0]
    return first, (first @ turn)[order], order


@pytest.mark.parametrize("eps", [None, 5e-4])
def test_gromov_finds_rotated_atoms_from_gram_matrices_alone(eps):
    a, b, order = rotated_dictionary()
    plan = gromov(a @ a.T, b @ b.T, eps=eps)
    assert plan.marginal_error < 1e-9
    assert plan.lower_bound <= plan.value
    pairs = plan.pairs
    assert len(pairs) == len(a) and (order[pairs[:, 1]] == pairs[:, 0]).all()


def test_gromov_value_and_bound():
    rng = np.random.default_rng(1)
    ca, cb = rng.random((5, 5)), rng.random((4, 4))
    plan = gromov(ca, cb)
    coupling = plan.dense()
    by_hand = sum(
        (ca[i, j] - cb[k, l]) ** 2 * coupling[i, k] * coupling[j, l]
        for i, j, k, l in itertools.product(range(5), range(5), range(4), range(4))
    )
    assert plan.value == pytest.approx(by_hand) == pytest.approx(gromov_value(ca, cb, coupling))
    # the bound holds for every plan, not only for the one that was found
    for seed in range(20):
        cost = np.random.default_rng(seed).random((5, 4))
        assert plan.lower_bound <= gromov_value(ca, cb, solve(cost).dense()) + 1e-12


def test_fused_gromov_goes_from_linear_to_quadratic():
    a, b, _ = rotated_dictionary(atoms=12)
    cost = np.random.default_rng(0).random((12, 12))
    linear = gromov(a @ a.T, b @ b.T, cost=cost, alpha=0.0)
    assert linear.value == pytest.approx(solve(cost).value)
    fused = gromov(a @ a.T, b @ b.T, cost=cost, alpha=0.5)
    assert fused.marginal_error < 1e-9 and fused.lower_bound <= fused.value


def test_free_barycentre_of_shifted_copies_is_the_copy_between():
    points = np.random.default_rng(0).standard_normal((15, 2))
    shift = np.array([3.0, 0.0])
    result = free_barycentre([points, points + shift], weights=[0.25, 0.75])
    target = points + 0.75 * shift
    assert solve(ground_cost("squared", result.points.T, target.T)).value < 1e-12
    assert result.value == pytest.approx(0.25 * 0.75 * 9)
    other = free_barycentre([points, points + shift], size=6, seed=1)
    assert other.points.shape == (6, 2) and all(plan.marginal_error < 1e-9 for plan in other.plans)


@pytest.mark.parametrize("eps", [None, 0.002])
def test_fixed_barycentre_moves_mass_instead_of_mixing_it(eps):
    x = np.linspace(0, 1, 31)
    masses = np.stack([np.exp(-((x - centre) ** 2) / 0.004) for centre in (0.3, 0.7)])
    masses /= masses.sum(1, keepdims=True)
    cost = (x[:, None] - x) ** 2
    result = fixed_barycentre(masses, cost, eps=eps)
    assert result.masses.sum() == pytest.approx(1)
    assert abs(x[result.masses.argmax()] - 0.5) < 0.04
    mixture = masses.mean(0)
    assert result.value < np.mean([solve(cost, row, mixture).value for row in masses])


def clients(threshold, order, sizes=(30, 24, 27, 20), samples=300, noise=0.5):
    rng = np.random.default_rng(0)
    base = rng.standard_normal((samples, 30))
    kept = [rng.permutation(30)[:size] for size in sizes]
    codes = [(base + noise * rng.standard_normal(base.shape))[:, keep] for keep in kept]
    codes, kept = [codes[k] for k in order], [kept[k] for k in order]
    pairs = itertools.combinations(range(len(order)), 2)
    costs = {(i, j): ground_cost("correlation", codes[i], codes[j]) for i, j in pairs}
    return universe(costs, threshold=threshold), kept


@pytest.mark.parametrize("threshold", [None, 0.6])
def test_universe_is_consistent_right_and_independent_of_order(threshold):
    result, kept = clients(threshold, [0, 1, 2, 3])
    for i, j, k in itertools.permutations(range(4), 3):
        around = (result.matching(i, j) @ result.matching(j, k)).toarray()
        assert (around <= result.matching(i, k).toarray()).all()
    for i, j in itertools.permutations(range(4), 2):
        matched = np.argwhere(result.matching(i, j).toarray())
        assert (kept[i][matched[:, 0]] == kept[j][matched[:, 1]]).mean() > 0.97
        assert (result.matching(i, j) != result.matching(j, i).T).nnz == 0
    order = [2, 0, 3, 1]
    again, _ = clients(threshold, order)
    assert again.value == pytest.approx(result.value)
    for i, j in itertools.permutations(range(4), 2):
        assert (again.matching(i, j) != result.matching(order[i], order[j])).nnz == 0


def test_universe_pools_evidence_that_no_pair_has_alone():
    """Units so noisy that matching two clients errs often; seven clients together err less, in any order."""
    hard = {"threshold": 0.8, "sizes": (30,) * 7, "samples": 25, "noise": 1.0}
    rng = np.random.default_rng(0)
    results = {tuple(order): clients(order=order, **hard) for order in (list(range(7)), [3, 0, 6, 1, 5, 2, 4])}
    (result, kept), (again, _) = results.values()
    assert again.value == pytest.approx(result.value)
    order = list(results)[1]
    for i, j in itertools.combinations(range(7), 2):
        assert (again.matching(i, j) != result.matching(order[i], order[j])).nnz == 0
    base = rng.standard_normal((25, 30))
    [rng.permutation(30) for _ in range(7)]
    codes = [(base + rng.standard_normal(base.shape))[:, keep] for keep in kept]
    right = {"universe": [], "pair by pair": []}
    for i, j in itertools.combinations(range(7), 2):
        alone = solve(ground_cost("correlation", codes[i], codes[j])).pairs
        together = np.argwhere(result.matching(i, j).toarray())
        for name, pairs in (("universe", together), ("pair by pair", alone)):
            right[name].append((kept[i][pairs[:, 0]] == kept[j][pairs[:, 1]]).sum())
    assert np.mean(right["universe"]) > 1.1 * np.mean(right["pair by pair"])


def test_universe_keeps_what_only_one_client_has():
    result, kept = clients(0.6, [0, 1, 2, 3])
    assert len(result.members) == len(set(np.concatenate(kept)))
    assert result.members.max() <= 4
    assert all((np.asarray(part.sum(axis=1)) == 1).all() for part in result.maps)
