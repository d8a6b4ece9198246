"""FedAVOT: weights against dense scaling, feasibility against linear programming, cost per round, files."""

import statistics
import time

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from typer.testing import CliRunner

from featalign import errors
from featalign.transport import AvotWeights, feasibility


def random_law(seed, deliverable):
    rng = np.random.default_rng(seed)
    n, k = rng.integers(2, 9), rng.integers(1, 9)
    subsets = [np.sort(rng.choice(n, rng.integers(1, n + 1), replace=False)) for _ in range(k)]
    q = rng.dirichlet(np.ones(k))
    mask = np.zeros((n, k))
    for column, members in enumerate(subsets):
        mask[members, column] = 1
    if deliverable:
        shares = mask * rng.uniform(0.05, 1, (n, k))
        return (shares / shares.sum(0) * q).sum(1), subsets, q, mask
    return rng.dirichlet(np.ones(n)), subsets, q, mask


def dense_scaling(p, mask, q):
    coupling = mask * q / mask.sum(0)
    for _ in range(200_000):
        rows = coupling.sum(1)
        coupling = coupling * np.where(rows > 0, p / np.maximum(rows, 1e-300), 0)[:, None]
        coupling = coupling * (q / coupling.sum(0))
        if np.abs(coupling.sum(1) - p).sum() < 1e-14:
            break
    return coupling


@pytest.mark.parametrize("seed", range(40))
def test_weights_equal_dense_scaling(seed):
    p, subsets, q, mask = random_law(seed, deliverable=True)
    weights = AvotWeights(p).fit(subsets, q)
    coupling = dense_scaling(p, mask, q)
    np.testing.assert_allclose(weights.coupling().toarray(), coupling, atol=1e-10)
    for column, members in enumerate(subsets):
        ours = weights.weights(members)
        np.testing.assert_allclose(ours, coupling[members, column] / q[column], atol=1e-10)
        assert abs(ours.sum() - 1) < 1e-12 and (ours >= 0).all()


def test_feasibility_equals_linear_programming_on_400_instances():
    verdicts = []
    for seed in range(400):
        p, subsets, q, mask = random_law(seed, deliverable=seed % 2 == 0)
        pairs = np.argwhere(mask > 0)
        limits = np.zeros((mask.shape[0] + mask.shape[1], len(pairs)))
        limits[pairs[:, 0], np.arange(len(pairs))] = 1
        limits[mask.shape[0] + pairs[:, 1], np.arange(len(pairs))] = 1
        best = -linprog(-np.ones(len(pairs)), A_ub=limits, b_ub=np.concatenate([p, q])).fun
        verdict = feasibility(p, subsets, q)
        assert verdict.feasible == (best > 1 - 1e-8), seed
        assert abs(verdict.deliverable - best) < 1e-7, seed
        if not verdict.feasible:  # the worst set proves it
            met = mask[verdict.worst].any(0)
            assert p[verdict.worst].sum() - q[met].sum() == pytest.approx(1 - best, abs=1e-7)
        verdicts.append(verdict.feasible)
    assert 50 < sum(verdicts) < 350


def test_aggregates_are_unbiased_when_feasible():
    p, subsets, q, _ = random_law(4, deliverable=True)
    weights = AvotWeights(p).fit(subsets, q)
    vectors = np.random.default_rng(0).standard_normal((len(p), 3))
    mean = sum(chance * weights.weights(members) @ vectors[members] for members, chance in zip(subsets, q))
    np.testing.assert_allclose(mean, p @ vectors, atol=1e-10)


def test_infeasible_law_names_the_worst_set():
    p, subsets, q = [0.7, 0.2, 0.1], [[0, 1], [1, 2]], [0.6, 0.4]
    with pytest.raises(errors.InfeasibleError, match=r"users \{0\}.*0\.7.*0\.6.*relax"):
        AvotWeights(p).fit(subsets, q)
    report = AvotWeights(p).fit(subsets, q, strict=False).report()
    assert not report["feasible"] and report["worst_set"] == [0]
    assert report["deliverable_mass"] == pytest.approx(0.9)
    assert report["error"] == pytest.approx(report["smallest_error"], abs=1e-6)


def test_single_availability_is_not_enough():
    """Everybody is present often enough alone, but users 0 and 1 only ever come together."""
    p, subsets, q = [0.45, 0.45, 0.1], [[0, 1, 2], [2]], [0.5, 0.5]
    presence = [0.5, 0.5, 1.0]
    assert all(importance <= pi for importance, pi in zip(p, presence))
    verdict = feasibility(p, subsets, q)
    assert not verdict.feasible and set(verdict.worst) == {0, 1}


def test_relaxation_goes_from_uniform_to_unbiased():
    p, subsets, q, _ = random_law(6, deliverable=True)
    uniform = AvotWeights(p, relax=0.0).fit(subsets, q)
    for members in subsets:
        np.testing.assert_allclose(uniform.weights(members), 1 / len(members))
    gaps = [AvotWeights(p, relax=relax).fit(subsets, q).report()["error"] for relax in (0.0, 0.5, 0.9, 1.0)]
    assert gaps == sorted(gaps, reverse=True) and gaps[-1] < 1e-10


def test_online_learns_the_law():
    p, subsets, q, _ = random_law(8, deliverable=True)
    rng = np.random.default_rng(0)
    online = AvotWeights(p)
    for k in rng.choice(len(q), 6000, p=q):
        online.update(subsets[k])
    fitted = AvotWeights(p).fit(subsets, q)

    def delivered(weights):
        total = np.zeros(len(p))
        for members, chance in zip(subsets, q):
            total[members] += chance * weights.weights(members)
        return np.abs(total - p).sum()

    assert delivered(online) < 0.25 * delivered(AvotWeights(p, relax=0.0).fit(subsets, q))
    assert delivered(fitted) < 1e-10


def test_a_million_users_under_a_millisecond_a_round():
    n = 1_000_000
    rng = np.random.default_rng(0)
    weights, took = AvotWeights(np.full(n, 1 / n)), []
    for _ in range(300):
        present = rng.choice(n, 2)
        start = time.perf_counter()
        shares = weights.update(present).weights(present)
        took.append(time.perf_counter() - start)
        assert abs(shares.sum() - 1) < 1e-12
    assert statistics.median(took) < 1e-3


@pytest.mark.parametrize(
    ("p", "subsets", "q", "message"),
    [
        ([0.5, 0.6], [[0, 1]], [1.0], "sum to 1.1"),
        ([1.5, -0.5], [[0, 1]], [1.0], "negative"),
        ([0.5, 0.5], [[0, 1]], [0.5], "sum to 0.5"),
        ([0.5, 0.5], [[]], [1.0], "empty"),
        ([0.5, 0.5], [], None, "no subsets"),
        ([0.5, 0.5], [[0, 5]], [1.0], "user 5"),
        ([1.0, 0.0], [[0], [1]], [0.5, 0.5], "infeasible|nobody"),
    ],
)
def test_bad_laws(p, subsets, q, message):
    with pytest.raises(errors.TransportError, match=message):
        AvotWeights(p).fit(subsets, q)


def test_bad_rounds():
    weights = AvotWeights([0.5, 0.5, 0.0])
    for present, message in (([], "nobody is present"), ([2], "importance"), ([0, 0], "twice"), ([7], "unknown")):
        with pytest.raises(errors.TransportError, match=message):
            weights.weights(present)
    with pytest.raises(errors.BadOption, match="relax"):
        AvotWeights([1.0], relax=2)
    with pytest.raises(errors.TransportError, match="fit"):
        weights.report()


def test_command_reports_by_name(tmp_path):
    from featalign.cli import app

    (tmp_path / "p.csv").write_text("user,p\nann,0.7\nbob,0.2\ncy,0.1\n")
    (tmp_path / "q.csv").write_text("users,q\nann bob,0.6\nbob cy,0.4\n")
    arguments = ["avot", "--p", str(tmp_path / "p.csv"), "--subsets", str(tmp_path / "q.csv"), "--json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0
    assert '"worst_set": [\n    "ann"\n  ]' in result.stdout
    (tmp_path / "q.csv").write_text("users,q\nann dan,1\n")
    with pytest.raises(errors.TransportError, match="dan"):
        CliRunner().invoke(app, arguments, catch_exceptions=False)
    (tmp_path / "q.csv").write_text("users,q\nann,x\n")
    with pytest.raises(errors.CorruptFile, match="line 2"):
        CliRunner().invoke(app, arguments, catch_exceptions=False)
    (tmp_path / "p.csv").unlink()
    with pytest.raises(errors.DataUnavailable, match="user,p"):
        CliRunner().invoke(app, arguments, catch_exceptions=False)


def test_users_as_a_mask_as_indices_or_not_at_all():
    weights = AvotWeights([0.5, 0.3, 0.2])
    np.testing.assert_array_equal(weights.weights([True, False, True]), weights.weights([0, 2]))
    np.testing.assert_array_equal(weights.weights(np.array([False, True, True])), weights.weights([1.0, 2.0]))
    np.testing.assert_array_equal(weights.weights(torch.tensor([2, 0])), weights.weights([2, 0]))
    with pytest.raises(errors.TransportError, match="mask of 2 users"):
        weights.weights([True, False])
    with pytest.raises(errors.TransportError, match="nobody is present"):
        weights.weights([False] * 3)
    for bad in ([0.5], [np.nan], ["0"], [-1], [3]):
        with pytest.raises(errors.TransportError, match=r"whole numbers|unknown"):
            weights.weights(bad)
        with pytest.raises(errors.TransportError, match=r"whole numbers|unknown"):
            AvotWeights([0.5, 0.3, 0.2]).fit([[0, 1], bad], [0.5, 0.5])
    law = [[True, True, False], [False, True, True]]
    fitted, same = AvotWeights([0.4, 0.4, 0.2]).fit(law), AvotWeights([0.4, 0.4, 0.2]).fit([[0, 1], [1, 2]])
    np.testing.assert_array_equal(fitted.theta, same.theta)


def scaling_alone(p, subsets, q, relax, steps=400_000):
    """The fixed point by the plain iteration, weights of every membership in order."""
    users, of = np.concatenate(subsets), np.repeat(np.arange(len(subsets)), [len(s) for s in subsets])
    theta = np.zeros(len(p))
    for _ in range(steps):
        exponential = np.exp(theta[users])
        shares = exponential / np.bincount(of, exponential)[of]
        phat = np.bincount(users, shares * q[of], len(p))
        before, theta = theta, relax * (theta + np.log(p / phat))
        theta -= theta.max()
        if np.abs(theta - before).max() < 1e-13:
            break
    return shares


@pytest.mark.parametrize("relax", [1.0, 0.99, 0.5])
@pytest.mark.parametrize("kind", ["ring", "chain of threes", "random"])
def test_newton_ends_where_scaling_ends(kind, relax):
    rng = np.random.default_rng(0)
    n = 30
    subsets = {
        "ring": [np.array([i, (i + 1) % n]) for i in range(n)],
        "chain of threes": [np.arange(i, i + 3) for i in range(n - 2)],
        "random": [np.sort(rng.choice(n, 4, replace=False)) for _ in range(60)],
    }[kind]
    q = rng.dirichlet(np.full(len(subsets), 3.0))
    p = np.zeros(n)
    for members, chance in zip(subsets, q):
        p[members] += chance * rng.dirichlet(np.full(len(members), 3.0))
    weights = AvotWeights(p / p.sum(), relax).fit(subsets, q)
    ours = np.concatenate([weights.weights(members) for members in subsets])
    np.testing.assert_allclose(ours, scaling_alone(p / p.sum(), subsets, q, relax), atol=1e-9)


def test_thousands_of_users_who_meet_in_a_ring_are_fitted_in_few_steps():
    """Scaling alone needs tens of thousands of iterations here: importance diffuses from neighbour to neighbour."""
    rng = np.random.default_rng(0)
    n = 4000
    subsets, q, p = [[i, (i + 1) % n] for i in range(n)], rng.dirichlet(np.full(n, 3.0)), np.zeros(n)
    for members, chance in zip(subsets, q):
        share = rng.random()
        p[members] += chance * np.array([share, 1 - share])
    weights = AvotWeights(p / p.sum()).fit(subsets, q)
    assert weights.iterations < 200 and weights.report()["error"] < 1e-11
