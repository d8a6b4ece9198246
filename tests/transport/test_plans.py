"""What holds for every plan of every solver, over shapes, zero masses, ties and scales."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment, linprog

from featalign.transport import solve

SOLVERS = {
    "auto": {},
    "exact": {},
    "sinkhorn": {"eps": 0.05, "tolerance": 1e-4},
    "sparse": {"candidates": 3, "tolerance": 0.0, "max_sweeps": 40},
}


@st.composite
def problems(draw, square=False):
    n = draw(st.integers(1, 12))
    m = n if square else draw(st.integers(1, 12))
    seed = draw(st.integers(0, 2**31))
    rng = np.random.default_rng(seed)
    cost = rng.random((n, m))
    if draw(st.booleans()):
        cost = np.round(cost * 4) / 4  # ties
    if draw(st.booleans()):
        cost = cost - 0.5
    return cost * 10.0 ** draw(st.sampled_from([-100, -8, 0, 6, 100])), rng


def masses(rng, size):
    part = rng.random(size) * (rng.random(size) < 0.7)
    part[rng.integers(size)] += 0.5
    return part / part.sum()


def check(plan, cost, a, b):
    coupling = plan.dense()
    assert np.isfinite(coupling).all() and (coupling >= 0).all()
    np.testing.assert_allclose(coupling.sum(1), a, atol=1e-9)
    np.testing.assert_allclose(coupling.sum(0), b, atol=1e-9)
    assert plan.marginal_error <= 1e-9
    assert plan.lower_bound <= plan.value
    scale = max(np.abs(cost).max(), 1e-300)
    assert abs(plan.value - (coupling * cost).sum()) <= 1e-9 * scale


def certificate_holds(plan, cost, a, b):
    f, g = plan.potentials
    scale = max(np.abs(cost).max(), 1e-300)
    assert (f[a > 0][:, None] + g[b > 0] <= cost[np.ix_(a > 0, b > 0)] + 1e-9 * scale).all()
    assert f[a > 0] @ a[a > 0] + g[b > 0] @ b[b > 0] >= plan.lower_bound - 1e-9 * scale


@pytest.mark.parametrize("method", SOLVERS)
@settings(max_examples=25, deadline=None)
@given(problem=problems())
def test_any_masses(method, problem):
    cost, rng = problem
    a, b = masses(rng, cost.shape[0]), masses(rng, cost.shape[1])
    plan = solve(cost, a, b, method=method, **SOLVERS[method])
    check(plan, cost, a, b)
    certificate_holds(plan, cost, a, b)
    if method != "sinkhorn":
        assert plan.gap <= 1e-9 * np.abs(cost).max()


@pytest.mark.parametrize("method", SOLVERS)
@settings(max_examples=25, deadline=None)
@given(problem=problems(square=True))
def test_uniform_square_is_an_assignment(method, problem):
    cost, _ = problem
    n = len(cost)
    uniform = np.full(n, 1 / n)
    plan = solve(cost, method=method, **SOLVERS[method])
    check(plan, cost, uniform, uniform)
    certificate_holds(plan, cost, uniform, uniform)
    optimum = cost[linear_sum_assignment(cost)].mean()
    scale = np.abs(cost).max()
    assert plan.lower_bound <= optimum + 1e-9 * scale
    if method != "sinkhorn":
        assert abs(plan.value - optimum) <= 1e-9 * scale
        assert plan.gap <= 1e-9 * scale


@settings(max_examples=30, deadline=None)
@given(problem=problems(), price=st.floats(0.05, 0.9), total=st.floats(0.3, 2.0), thin=st.booleans())
def test_partial_by_threshold(problem, price, total, thin):
    """Dense, sparse and linear programming agree; capacities are never exceeded."""
    cost, rng = problem
    a, b = masses(rng, cost.shape[0]), total * masses(rng, cost.shape[1])
    low, high = cost.min(), cost.max()
    tau = low + price * (high - low)
    n, m = cost.shape
    within = np.vstack([np.kron(np.eye(n), np.ones(m)), np.kron(np.ones(n), np.eye(m))])
    scale = np.abs(cost).max() or 1.0
    program = linprog((cost - tau).ravel() / scale, A_ub=within, b_ub=np.concatenate([a, b]))
    optimum = program.fun * scale + tau * min(a.sum(), b.sum())
    options = {"candidates": 2, "tolerance": 0.0, "max_sweeps": 40} if thin else {}
    plan = solve(cost, a, b, method="sparse" if thin else "partial", threshold=tau, **options)
    assert plan.marginal_error <= 1e-9
    assert plan.lower_bound <= plan.value
    assert abs(plan.value - optimum) <= 1e-7 * scale
    assert plan.gap <= 1e-9 * scale
    f, g = (part[mass > 0] for part, mass in zip(plan.potentials, (a, b)))
    pairs = np.minimum(cost, tau)[np.ix_(a > 0, b > 0)]
    assert (f[:, None] + g <= pairs + 1e-9 * scale).all()
    assert (g if a.sum() <= b.sum() else f).max() <= 1e-9 * scale or a.sum() == pytest.approx(b.sum())
    assert f @ a[a > 0] + g @ b[b > 0] == pytest.approx(plan.lower_bound, abs=1e-9 * scale)


@settings(max_examples=25, deadline=None)
@given(problem=problems(), share=st.floats(0.1, 1.0))
def test_partial_by_mass(problem, share):
    cost, rng = problem
    a, b = masses(rng, cost.shape[0]), masses(rng, cost.shape[1])
    plan = solve(cost, a, b, method="partial", mass=share)
    assert abs(plan.mass - share) <= 1e-9
    assert plan.marginal_error <= 1e-9
    assert plan.lower_bound <= plan.value
    assert plan.gap <= 1e-9 * np.abs(cost).max()


def test_elbow_separates_real_pairs_from_the_rest():
    from featalign.transport import mass_curve

    rng = np.random.default_rng(0)
    cost = 0.8 + 0.2 * rng.random((40, 40))
    cost[np.arange(25), np.arange(25)] = 0.2 * rng.random(25)
    curve = mass_curve(cost)
    slopes = np.diff(curve.values) / np.maximum(np.diff(curve.masses), 1e-12)
    assert (np.diff(slopes[np.diff(curve.masses) > 0]) > -1e-9).all()  # convex
    for k in (3, 12):  # every point is the optimum for its mass
        assert solve(cost, method="partial", mass=curve.masses[k]).value == pytest.approx(curve.values[k])
    plan = solve(cost, mass="elbow")
    assert plan.mass == pytest.approx(25 / 40)
    assert (plan.pairs == np.stack([np.arange(25)] * 2, axis=1)).all()


@settings(max_examples=25, deadline=None)
@given(problem=problems(), price=st.floats(0.1, 5.0), divergence=st.sampled_from(["kl", "tv"]))
def test_unbalanced_bounds(problem, price, divergence):
    cost, rng = problem
    scale = np.abs(cost).max() or 1.0
    a, b = masses(rng, cost.shape[0]), masses(rng, cost.shape[1])
    plan = solve(np.abs(cost), a, b, method="unbalanced", price=price * scale, divergence=divergence)
    assert np.isfinite(plan.dense()).all() and (plan.mass > 0 or divergence == "tv")  # tv may leave all unmatched
    assert plan.lower_bound <= plan.value
    if divergence == "tv":
        assert plan.gap <= 1e-9 * scale


def test_assignment_equals_emd_equals_partial_with_full_mass():
    import ot

    cost = np.random.default_rng(0).random((30, 30))
    uniform = np.full(30, 1 / 30)
    emd = (ot.emd(uniform, uniform, cost) * cost).sum()
    for plan in (solve(cost), solve(cost, method="partial", mass=1.0), solve(cost, method="partial", threshold=2.0)):
        assert abs(plan.value - emd) < 1e-12
        assert len(plan.pairs) == 30


def test_large_assignments_go_through_candidates_and_stay_exact():
    cost = np.random.default_rng(0).random((2000, 2000))
    plan = solve(cost)
    assert "candidate" in plan.reason
    assert abs(plan.value - cost[linear_sum_assignment(cost)].mean()) < 1e-12
    assert plan.gap < 1e-9 * plan.value


def test_warm_start_proves_a_similar_problem_at_once():
    cost = np.random.default_rng(0).random((60, 60))
    warm = solve(cost)
    again = solve(cost - 1e-9 * (warm.dense() > 0), warm=warm)  # matched pairs a little cheaper: the minima are apart
    assert "cheapest target" in again.reason
    assert (again.pairs == warm.pairs).all()
    assert again.gap < 1e-12
    a = np.random.default_rng(1).dirichlet(np.ones(60))
    first = solve(cost, a)
    assert abs(solve(cost, a, warm=first).value - first.value) < 1e-12


def test_reason_names_the_solver_that_auto_took():
    rng = np.random.default_rng(0)
    assert "assignment" in solve(rng.random((5, 5))).reason
    assert "simplex" in solve(rng.random((5, 6))).reason
    assert solve(rng.random((5, 6)), threshold=0.1).method == "partial"


def test_plan_is_immutable_and_shows_its_certificate():
    plan = solve(np.random.default_rng(0).random((6, 6)))
    with pytest.raises(AttributeError):
        plan.value = 0.0
    assert "lower bound" in plan._repr_html_()
    assert len(plan.to_frame()) == 6
    assert plan.to_dict()["gap"] == plan.gap
    assert plan.unmatched[0].size == 0


def test_planted_pairs_are_found_and_the_rest_stays_unmatched():
    from featalign.bench.latents import planted_latents
    from featalign.transport import ground_cost, null_threshold

    a, b, twin = planted_latents(400, 800)
    cost = ground_cost("correlation", a, b)
    for method in ("partial", "sparse"):
        plan = solve(cost, method=method, threshold=null_threshold(cost.null(seed=0)))
        pairs = plan.pairs
        hits = (twin[pairs[:, 0]] == pairs[:, 1]).sum()
        assert hits >= 0.97 * (twin >= 0).sum()
        assert hits >= 0.9 * len(pairs)
        assert plan.gap <= 0.01 * plan.value


@pytest.mark.slow
def test_sixteen_thousand_latents_within_memory_and_gap():
    from featalign.bench.transport import _in_own_process

    (row,) = _in_own_process(16384)
    assert row["relative_gap"] <= 0.01
    assert row["recall"] >= 0.97
    assert row["peak_memory_gb"] < 4
