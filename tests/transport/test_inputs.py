"""Costs and masses as people have them: half precision, integers, totals an ulp apart, masses near the float range."""

import doctest

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from featalign import errors, transport
from featalign.transport import Problem, ground_cost, solve

OPTIONS = {"exact": {}, "auto": {}, "sparse": {}, "sinkhorn": {"eps": 0.05, "tolerance": 1e-3}}
LOOSE = {"partial": {"threshold": 0.5}, "unbalanced": {}, "sparse": {"threshold": 0.5}}
EVERY = [*OPTIONS.items(), *LOOSE.items()]
COST = np.random.default_rng(0).random((4, 5))


def test_example_of_the_package():
    failed, tried = doctest.testmod(transport)
    assert tried > 3 and failed == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.int32, torch.bool, np.float16])
def test_costs_of_any_precision(dtype):
    cost = (torch.from_numpy(COST) * 4).to(dtype) if isinstance(dtype, torch.dtype) else (COST * 4).astype(dtype)
    whole = np.asarray(cost.double() if hasattr(cost, "double") else cost, dtype=float)
    for method, options in EVERY:
        given_, exact = solve(cost, method=method, **options), solve(whole, method=method, **options)
        assert given_.value == exact.value and (given_.dense() == exact.dense()).all()
    if isinstance(dtype, torch.dtype) and dtype.is_floating_point:
        codes = torch.from_numpy(COST).to(dtype)
        right = ground_cost("correlation", codes.double(), codes.double()).dense()
        np.testing.assert_allclose(ground_cost("correlation", codes, codes).dense(), right, atol=1e-5)
        assert solve(cost, torch.ones(4).to(dtype) / 4, torch.ones(5, dtype=torch.double) / 5).marginal_error < 1e-9
        assert transport.sinkhorn(cost).plan.dtype == torch.float64
        assert solve(cost.requires_grad_()).value == solve(whole).value


@pytest.mark.parametrize(("method", "options"), EVERY)
class TestMasses:
    def test_that_overflow_when_summed(self, method, options):
        with pytest.raises(errors.NotFinite, match="overflow"):
            solve(COST, np.full(4, 1e308), np.full(5, 8e307), method=method, **options)
        with pytest.raises(errors.NotFinite, match="divide them by their largest"):
            solve(ground_cost("squared", COST, COST), np.full(5, 1e308), np.full(5, 1e308), method=method, **options)
        with pytest.raises(errors.NotFinite, match="overflow"):
            sides = (torch.full((4,), 1e308, dtype=torch.double), torch.full((5,), 8e307, dtype=torch.double))
            transport.sinkhorn(torch.from_numpy(COST), *sides)

    def test_that_overflow_times_the_cost(self, method, options):
        with pytest.raises(errors.NotFinite, match="overflow"):
            solve(COST * 1e160, np.full(4, 5e144), np.full(5, 4e144), method=method, **options)

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_not_finite(self, method, options, bad):
        with pytest.raises(errors.NotFinite, match="b hold NaN or infinity at index 2"):
            solve(COST, None, [0.2, 0.2, bad, 0.2, 0.2], method=method, **options)

    def test_too_small_to_divide(self, method, options):
        with pytest.raises(errors.TransportError, match="divide them by their largest"):
            solve(COST, np.full(4, 5e-324), np.full(5, 4e-324), method=method, **options)

    def test_no_numbers(self, method, options):
        for bad in (["a", "b", "c", "d"], [1j, 1, 1, 1]):
            with pytest.raises(errors.TransportError, match="real numbers"):
                solve(COST, bad, method=method, **options)

    def test_integers_negative_zero_and_subnormal_units(self, method, options):
        whole = solve(COST, np.array([5, 0, 5, 10]), np.full(5, 4), method=method, **options)
        same = solve(COST, [5.0, -0.0, 5.0, 10.0], np.full(5, 4.0), method=method, **options)
        assert whole.value == same.value and whole.dense()[1].sum() == 0
        tiny = solve(COST, [0.25, 5e-324, 0.25, 0.5], np.full(5, 0.2), method=method, **options)
        assert tiny.value == pytest.approx(whole.value / 20, rel=1e-2 if method == "sinkhorn" else 1e-6)
        assert np.isfinite(tiny.dense()).all() and tiny.lower_bound <= tiny.value

    @pytest.mark.parametrize("scale", [1e-200, 1e-20, 1e20, 1e140])
    def test_of_any_scale(self, method, options, scale):
        a, b = np.array([0.1, 0.2, 0.3, 0.4]), np.full(5, 0.2)
        unit, scaled = (solve(COST, s * a, s * b, method=method, **options) for s in (1.0, scale))
        assert scaled.value == pytest.approx(scale * unit.value, rel=1e-6)
        assert scaled.gap <= scale * (unit.gap + 1e-9)

    def test_one_unit_each(self, method, options):
        plan = solve([[0.25]], [2.0], [2.0], method=method, **options)
        assert 0 < plan.value <= 0.5 and plan.lower_bound <= plan.value


@pytest.mark.parametrize("ulp", [-1, 0, 1])
@pytest.mark.parametrize("shape", [(6, 6), (6, 9), (9, 6)])
@pytest.mark.parametrize("uniform", [True, False])
def test_bound_when_totals_differ_by_one_ulp(ulp, shape, uniform):
    rng = np.random.default_rng(0)
    cost = rng.random(shape)
    a, b = (np.ones(size) / size if uniform else rng.dirichlet(np.ones(size)) for size in shape)
    a = a * (1 + ulp * 2**-52)
    for method in ("sparse", "partial"):
        plan = solve(cost, a, b, method=method, threshold=0.3)
        assert plan.lower_bound > 0 and plan.gap <= 1e-12, method
    for method in ("exact", "sparse"):
        plan = solve(cost, a, b, method=method, **({"tolerance": 0.0} if method == "sparse" else {}))
        assert plan.lower_bound > 0 and plan.gap <= 1e-12, method
    assert solve(cost, a, b, "unbalanced", divergence="tv", price=0.3).gap <= 1e-12


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    shape=st.tuples(st.integers(1, 10), st.integers(1, 10)),
    span=st.sampled_from([0, 3, 9, 14]),
    masses=st.sampled_from(["uniform", "general", "steep"]),
    method=st.sampled_from(list(OPTIONS)),
)
def test_plans_have_their_marginals_and_are_optimal_or_say_by_how_much_not(seed, shape, span, masses, method):
    """Costs and masses over many orders of magnitude: two bounds on one optimum never cross."""
    rng = np.random.default_rng(seed)
    cost = rng.random(shape) * 10.0 ** rng.integers(0, span + 1, shape)
    power = {"uniform": 0, "general": 1, "steep": 12}[masses]
    a, b = ((0.05 + 0.95 * rng.random(size)) ** power for size in shape)
    a, b = a / a.sum(), b / b.sum()
    options = {"max_iterations": 100} if method == "sinkhorn" else {}
    plan, reference = solve(cost, a, b, method=method, **OPTIONS[method], **options), solve(cost, a, b)
    assert plan.marginal_error <= 1e-9
    assert plan.lower_bound <= plan.value
    rounding = 1e-9 * reference.value
    assert plan.lower_bound <= reference.value + rounding and reference.lower_bound <= plan.value + rounding
    assert reference.gap <= 1e-6 * reference.value
    assert plan.value == pytest.approx(float((plan.dense() * cost).sum()), rel=1e-9)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), n=st.integers(1, 9))
def test_properties_of_a_problem_decide_the_road(seed, n):
    rng = np.random.default_rng(seed)
    uniform, general = np.full(n, 1 / n), rng.dirichlet(np.ones(n + 1))
    square, wide = rng.random((n, n)), rng.random((n, n + 1))
    assert Problem(square).is_assignment and Problem(square, uniform, 1 / n * np.ones(n)).is_assignment
    assert not Problem(wide).is_assignment and Problem(wide).is_uniform and Problem(wide).is_balanced
    problem = Problem(wide, None, general)
    assert not problem.is_uniform or n == 0
    assert problem.is_balanced and not Problem(square, uniform, 2 * uniform).is_balanced
    assert "assignment" in solve(square, uniform).reason or "cheapest target" in solve(square, uniform).reason
    assert "simplex" in solve(problem).reason
    assert Problem(ground_cost("squared", square, square)).is_lazy
    assert solve(Problem(square)).value == solve(square).value
