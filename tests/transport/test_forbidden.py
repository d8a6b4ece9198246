"""Forbidden pairs, by a mask or by a price of 1e12, against linear programming, for every solver and general masses."""

import numpy as np
import pytest
from scipy.optimize import linprog

from featalign import errors
from featalign.transport import SOLVERS, Problem, gromov, ground_cost, mass_curve, sinkhorn, solve

DEAR = (1e6, 1e9, 1e12)
TIGHT = 1e-9


def draw(seed):
    """`(cost, a, b, allowed, whether some plan keeps to the allowed pairs)`; masses equal, general, integer or zero."""
    rng = np.random.default_rng(seed)
    n, m = rng.integers(1, 9, 2)
    if seed % 4 == 0:
        m = n
    cost = rng.random((n, m))
    if seed % 3 == 0:
        cost = np.round(cost * 4) / 4 - 0.25 * (seed % 2)
    if seed % 4 == 0:
        a, b = np.full(n, 1 / n), np.full(m, 1 / n)
    elif seed % 7 == 0:
        a, b = np.full(n, int(m)), np.full(m, int(n))
    else:
        a, b = (part * (rng.random(len(part)) < 0.8) for part in (rng.random(n) + 0.1, rng.random(m) + 0.1))
        a[rng.integers(n)] += 1.0
        b[rng.integers(m)] += 1.0
        a, b = a / a.sum(), b / b.sum()
    allowed = rng.random((n, m)) < 0.6
    if seed % 2:  # room for one plan at least
        plan = solve(rng.random((n, m)), a, b).dense()
        allowed |= plan > 0
    return cost, a, b, allowed


def program(cost, a, b, allowed, mass=None, price=None):
    """Least `<C, T> + price (min(|a|, |b|) - |T|)` on the allowed pairs, None where there is no plan."""
    n, m = cost.shape
    marginals = np.vstack([np.kron(np.eye(n), np.ones(m)), np.kron(np.ones(n), np.eye(m))]).reshape(n + m, n * m)
    limits = np.concatenate([a, b]).astype(float)
    charges = np.where(allowed, cost, 0.0).ravel() - (price or 0.0)
    bounds = [(0, None if ok else 0) for ok in allowed.ravel()]
    if mass is None and price is None:
        found = linprog(charges, A_eq=marginals, b_eq=limits, bounds=bounds, method="highs")
    elif price is not None:
        found = linprog(charges, A_ub=marginals, b_ub=limits, bounds=bounds, method="highs")
    else:
        options = {"A_ub": marginals, "b_ub": limits, "A_eq": np.ones((1, n * m)), "b_eq": [mass]}
        found = linprog(charges, bounds=bounds, method="highs", **options)
    if found.status == 2:
        return None
    assert found.status == 0, found.message
    return found.fun + (price or 0.0) * min(sum(a), sum(b))


def answer(cost, a, b, method, mask=None, **options):
    """The plan, or None where the solver says that there is none."""
    try:
        return solve(cost, a, b, method, mask=mask, **options)
    except errors.InfeasibleError:
        return None


def keeps_to(plan, a, b, allowed, full=True):
    coupling = plan.dense()
    assert (coupling >= 0).all() and coupling[~allowed].sum() == 0
    assert plan.lower_bound <= plan.value
    total = np.sum(a)
    for held, asked in ((coupling.sum(1), a), (coupling.sum(0), b)):
        assert (np.abs(held - asked) if full else (held - asked).clip(min=0)).sum() <= 1e-9 * total


BALANCED = {
    "auto": {},
    "exact": {},
    "sparse": {"candidates": 2, "tolerance": 0.0, "max_sweeps": 60},
    "sinkhorn": {"eps": 0.05, "tolerance": 1e-3, "max_iterations": 100},
}


def check_mask(seed):
    """Every solver against the linear program; whether there was a balanced plan to compare."""
    cost, a, b, allowed = draw(seed)
    optimum, total = program(cost, a, b, allowed), float(np.sum(a))
    balanced = optimum is not None
    junk = np.where(allowed, cost, [np.nan, np.inf, -1e300][seed % 3])  # what the mask forbids is never read
    for method, options in BALANCED.items():
        plan = answer(junk, a, b, method, mask=allowed, **options)
        assert (plan is None) == (optimum is None), (seed, method)
        if plan is not None:
            keeps_to(plan, a, b, allowed)
            if method == "sinkhorn":
                assert plan.lower_bound - TIGHT * total <= optimum <= plan.value + TIGHT * total
            else:
                assert abs(plan.value - optimum) <= TIGHT * total, (seed, method)
                assert plan.gap <= TIGHT * total, (seed, method)
    if not allowed.any():
        return balanced
    price = 0.4
    for method, options in (("partial", {}), ("sparse", BALANCED["sparse"])):
        plan = solve(junk, a, b, method, mask=allowed, threshold=price, **options)
        keeps_to(plan, a, b, allowed, full=False)
        assert abs(plan.value - program(cost, a, b, allowed, price=price)) <= TIGHT * total, (seed, method)
        assert plan.gap <= TIGHT * total, (seed, method)
    half = 0.5 * total
    plan, optimum = answer(junk, a, b, "partial", mask=allowed, mass=half), program(cost, a, b, allowed, mass=half)
    assert (plan is None) == (optimum is None), seed
    if plan is not None:
        keeps_to(plan, a, b, allowed, full=False)
        assert abs(plan.value - optimum) <= TIGHT * total and plan.gap <= TIGHT * total, seed
    plan = solve(junk, a, b, "unbalanced", mask=allowed, divergence="tv", price=price)
    keeps_to(plan, a, b, allowed, full=False)
    assert abs(plan.value - program(cost, a, b, allowed, price=2 * price)) <= TIGHT * total, seed
    if (cost >= 0).all() and cost[allowed][np.outer(a, b)[allowed] > 0].size:
        plan = solve(junk, a, b, "unbalanced", mask=allowed, price=1.0)
        assert plan.dense()[~allowed].sum() == 0
        assert plan.lower_bound <= plan.value <= plan.lower_bound + 1e-2 * total, (seed, plan.gap)
    if allowed.all():
        return balanced
    with pytest.raises(errors.TransportError, match="no mask"):
        solve(cost, a, b, "gromov", mask=allowed, structure_a=np.eye(len(a)), structure_b=np.eye(len(b)))
    return balanced


def check_price(seed):
    """Finite prices nobody can want to pay: right where it can be avoided, and never a bound above the optimum."""
    cost, a, b, allowed = draw(seed)
    optimum, total = program(cost, a, b, allowed), float(np.sum(a))
    dear = np.where(allowed, cost, DEAR[seed % 3])
    structures = {"structure_a": np.zeros((len(a),) * 2), "structure_b": np.zeros((len(b),) * 2), "alpha": 0.0}
    for method, options in {**BALANCED, "gromov": structures}.items():
        plan = solve(dear, a, b, method, **options)
        if optimum is None:
            assert plan.value > 1e-12 * DEAR[seed % 3]
            continue
        assert plan.lower_bound <= optimum + TIGHT * total, (seed, method)
        assert optimum <= plan.value + TIGHT * total, (seed, method)
        if method != "sinkhorn":
            assert plan.value <= optimum + TIGHT * total, (seed, method, plan.gap)
            assert plan.gap <= 1e-6 * total, (seed, method)
    for method, options in (("partial", {}), ("sparse", BALANCED["sparse"])):
        plan = solve(dear, a, b, method, threshold=0.4, **options)
        assert abs(plan.value - program(cost, a, b, allowed, price=0.4)) <= TIGHT * total, (seed, method)
    feasible = program(cost, a, b, allowed, mass=0.5 * total)
    if feasible is not None:
        plan = solve(dear, a, b, "partial", mass=0.5 * total)
        assert abs(plan.value - feasible) <= TIGHT * total, seed
        assert plan.lower_bound <= feasible + TIGHT * total
    plan = solve(dear, a, b, "unbalanced", divergence="tv", price=0.4)
    assert abs(plan.value - program(cost, a, b, allowed, price=0.8)) <= TIGHT * total, seed
    return optimum is not None


def quarter_forbidden(n=200):
    rng = np.random.default_rng(0)
    cost, forbidden = rng.random((n, n)), rng.random((n, n)) < 0.3
    a, b = 0.1 + rng.random(n), 0.1 + rng.random(n)
    return cost, a / a.sum(), b / b.sum(), ~forbidden


@pytest.mark.parametrize("price", [1e8, 1e10, 1e12, 1e15])
@pytest.mark.parametrize("method", ["exact", "sparse", "gromov"])
def test_dear_pairs_do_not_blur_the_others(method, price):
    cost, a, b, allowed = quarter_forbidden(80 if method == "gromov" else 200)
    options = {"sparse": {"tolerance": 0.0, "max_sweeps": 40}, "gromov": {"alpha": 0.0}}.get(method, {})
    if method == "gromov":
        options |= {"structure_a": np.eye(len(a)), "structure_b": np.eye(len(b))}
    plan = solve(np.where(allowed, cost, price), a, b, method, **options)
    right = solve(cost, a, b, mask=allowed)
    assert right.gap <= 1e-12 and right.dense()[~allowed].sum() == 0
    assert plan.value == pytest.approx(right.value, rel=1e-9)
    assert plan.lower_bound <= right.value * (1 + 1e-9)
    assert plan.marginal_error <= 1e-9


def test_entropic_plan_says_how_far_dear_pairs_lead_it_astray():
    cost, a, b, allowed = quarter_forbidden(60)
    optimum = solve(cost, a, b, mask=allowed).value
    astray = solve(np.where(allowed, cost, 1e12), a, b, "sinkhorn", max_iterations=200)
    assert astray.lower_bound <= optimum <= astray.value and astray.gap >= astray.value - optimum
    masked = solve(cost, a, b, "sinkhorn", mask=allowed, eps=0.002)
    assert masked.dense()[~allowed].sum() == 0 and masked.marginal_error <= 1e-9
    assert optimum <= masked.value <= 1.2 * optimum and masked.lower_bound <= optimum


def test_masked_entropic_gradient_is_that_of_the_allowed_pairs():
    import torch

    rng = np.random.default_rng(0)
    cost, mask = torch.tensor(rng.random((5, 6)), requires_grad=True), torch.tensor(rng.random((5, 6)) < 0.8)
    mask[:, 0] = mask[0] = True
    result = sinkhorn(cost, eps=0.1, tolerance=1e-13, mask=mask)
    assert result.plan[~mask].abs().sum() == 0 and abs(result.primal - result.dual) < 1e-10
    result.plan.square().sum().backward()
    assert cost.grad[~mask].abs().sum() == 0 and torch.isfinite(cost.grad).all() and cost.grad[mask].abs().max() > 0
    with pytest.raises(errors.InfeasibleError):
        sinkhorn(cost.detach(), mask=torch.zeros(5, 6, dtype=torch.bool))


def test_a_mask_goes_with_costs_read_by_blocks():
    rng = np.random.default_rng(0)
    x, y, allowed = rng.standard_normal((50, 30)), rng.standard_normal((50, 40)), rng.random((30, 40)) < 0.5
    cost = ground_cost("correlation", x, y)
    whole = solve(cost.dense(), mask=allowed)
    lazy = solve(cost, mask=allowed, method="sparse", candidates=3, tolerance=1e-12, max_sweeps=60)
    assert lazy.value == pytest.approx(whole.value, rel=1e-9) and lazy.dense()[~allowed].sum() == 0
    turned = solve(np.ascontiguousarray(cost.dense().T), mask=allowed.T, method="sparse", tolerance=0.0, max_sweeps=60)
    assert turned.value == pytest.approx(whole.value, rel=1e-9)


@pytest.mark.parametrize("method", ["auto", "exact", "sparse", "sinkhorn"])
def test_masks_that_no_plan_keeps_to(method):
    cost = np.random.default_rng(0).random((4, 4))
    row, block = np.ones((4, 4), bool), np.ones((4, 4), bool)
    row[2] = False
    block[:3, 1:] = False  # three sources share one target
    for mask, masses in ((row, None), (block, None), (row, [0.1, 0.2, 0.3, 0.4]), (block, [0.1, 0.2, 0.3, 0.4])):
        with pytest.raises(errors.InfeasibleError):
            solve(cost, masses, method=method, mask=mask)
    with pytest.raises(errors.InfeasibleError, match="no pair at all"):
        solve(cost, method=method, mask=np.zeros((4, 4)))
    without = solve(cost, [0.25, 0.25, 0, 0.5], method=method, mask=row)  # a unit without mass needs no partner
    assert without.dense()[2].sum() == 0 and without.marginal_error <= 1e-9
    assert solve(cost, method="partial", mask=block, threshold=2.0).mass == pytest.approx(0.5)


def test_malformed_masks():
    cost = np.ones((2, 3))
    for mask, message in (
        (np.ones((3, 2)), "shape"),
        (np.full((2, 3), np.nan), "0 and 1"),
        (2 * np.ones((2, 3)), "0"),
    ):
        with pytest.raises(errors.TransportError, match=message):
            solve(cost, mask=mask)
    with pytest.raises(errors.NotFinite, match="mask="):
        solve(np.array([[1.0, np.inf], [2.0, 3.0]]))
    with pytest.raises(errors.BadOption, match="beside it"):
        solve(Problem(cost), mask=np.ones((2, 3)))
    assert not Problem(cost, mask=np.ones((2, 3))).is_masked


def test_curve_of_a_masked_problem_matches_allowed_pairs_only():
    rng = np.random.default_rng(0)
    allowed = np.eye(8, dtype=bool) | (rng.random((8, 8)) < 0.3)
    problem = Problem(rng.random((8, 8)), mask=allowed)
    curve = mass_curve(problem)
    assert np.isfinite(curve.values).all()
    assert solve(problem, mass="elbow").dense()[~allowed].sum() == 0


def test_gromov_is_one_of_the_registered_solvers():
    rng = np.random.default_rng(0)
    first, second, cost = rng.random((5, 5)), rng.random((4, 4)), rng.random((5, 4))
    named = solve(cost, method="gromov", structure_a=first, structure_b=second, alpha=0.3)
    assert named.value == gromov(first, second, cost=cost, alpha=0.3).value
    assert set(SOLVERS) == {"auto", "exact", "sparse", "partial", "sinkhorn", "unbalanced", "gromov"}


@pytest.mark.parametrize("check", [check_mask, check_price])
def test_against_linear_programming(check):
    assert sum(check(seed) for seed in range(30)) >= 20


@pytest.mark.slow
@pytest.mark.parametrize("check", [check_mask, check_price])
@pytest.mark.parametrize("start", range(0, 500, 50))
def test_five_hundred_problems_against_linear_programming(check, start):
    assert sum(check(seed) for seed in range(start, start + 50)) >= 30
