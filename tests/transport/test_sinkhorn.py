"""Entropic transport: batches, duality, convergence, gradients."""

import itertools

import numpy as np
import pytest
import torch

from featalign.transport import hilbert_rate, round_to_marginals, sinkhorn, solve


def problem(seed=0, shape=(6, 8)):
    generator = torch.Generator().manual_seed(seed)
    cost = torch.rand(*shape, generator=generator, dtype=torch.double)
    a = torch.rand(*shape[:-1], generator=generator, dtype=torch.double) + 0.1
    b = torch.rand(*shape[:-2], shape[-1], generator=generator, dtype=torch.double) + 0.1
    return cost, a / a.sum(-1, keepdim=True), b / b.sum(-1, keepdim=True)


def test_batch_equals_one_by_one():
    cost, a, b = problem(shape=(3, 6, 8))
    together = sinkhorn(cost, a, b, eps=0.05, tolerance=1e-12)
    for k in range(3):
        alone = sinkhorn(cost[k], a[k], b[k], eps=0.05, tolerance=1e-12)
        torch.testing.assert_close(together.plan[k], alone.plan, atol=1e-10, rtol=0)
        torch.testing.assert_close(together.primal[k], alone.primal, atol=1e-9, rtol=0)


def test_padding_with_zero_masses_changes_nothing():
    cost, a, b = problem()
    wide = torch.nn.functional.pad(cost, (0, 2, 0, 3), value=0.5)
    padded = sinkhorn(
        wide, torch.nn.functional.pad(a, (0, 3)), torch.nn.functional.pad(b, (0, 2)), eps=0.05, tolerance=1e-12
    )
    plain = sinkhorn(cost, a, b, eps=0.05, tolerance=1e-12)
    torch.testing.assert_close(padded.plan[:6, :8], plain.plan, atol=1e-10, rtol=0)
    assert padded.plan[6:].abs().max() == 0 and padded.plan[:, 8:].abs().max() == 0


def test_primal_equals_dual_at_the_optimum_and_bounds_it_before():
    cost, a, b = problem()
    done = sinkhorn(cost, a, b, eps=0.02, tolerance=1e-13)
    assert abs(done.primal - done.dual) < 1e-10
    for iterations in (1, 3, 10):
        early = sinkhorn(cost, a, b, eps=0.02, tolerance=1e-13, max_iterations=iterations, halving=False)
        assert early.dual <= done.primal + 1e-12 <= early.primal + 2e-12


def test_same_plan_as_pot():
    import ot

    cost, a, b = problem()
    eps = 0.05
    theirs = ot.sinkhorn(
        a.numpy(), b.numpy(), cost.numpy(), eps * float(np.ptp(cost.numpy())), method="sinkhorn_log", stopThr=1e-14
    )
    np.testing.assert_allclose(sinkhorn(cost, a, b, eps=eps, tolerance=1e-13).plan, theirs, atol=1e-10)


def test_error_is_relative_to_the_mass_and_true():
    cost, a, b = problem()
    for scale in (1e-6, 1.0, 1e6):
        result = sinkhorn(cost, a * scale, b * scale, eps=0.01, tolerance=1e-5, rounded=False)
        error = (result.plan.sum(1) - a * scale).abs().sum() + (result.plan.sum(0) - b * scale).abs().sum()
        assert result.converged and error <= 1.01e-5 * scale


def test_measured_rate_respects_the_hilbert_bound():
    cost, a, b = problem()
    eps = 0.3
    result = sinkhorn(cost, a, b, eps=eps, tolerance=1e-13, halving=False, check_every=1)
    rate = hilbert_rate(cost.numpy(), eps * float(cost.max() - cost.min()))
    assert 0 < rate < 1
    errors, at = np.array(result.errors[1:-1]), np.array(result.at[1:-1])
    keep = errors > 1e-11
    measured = np.exp(np.polyfit(at[keep], np.log(errors[keep]), 1)[0])
    assert measured <= rate


def test_hilbert_rate_is_the_formula():
    cost = np.random.default_rng(0).random((4, 5))
    kernel = np.exp(-cost / 0.2)
    eta = max(
        kernel[i, k] * kernel[j, l] / (kernel[j, k] * kernel[i, l])
        for i in range(4) for j in range(4) for k in range(5) for l in range(5)
    )  # fmt: skip
    assert abs(hilbert_rate(cost, 0.2) - ((eta**0.5 - 1) / (eta**0.5 + 1)) ** 2) < 1e-12


def test_halving_reaches_the_exact_value():
    cost = np.random.default_rng(0).random((30, 30))
    optimum = solve(cost).value
    values = [solve(cost, method="sinkhorn", eps=eps, max_iterations=5000) for eps in (0.1, 0.01, 0.001, 0.0002)]
    excess = [plan.value - optimum for plan in values]
    assert all(later <= earlier for earlier, later in itertools.pairwise(excess))
    assert excess[-1] < 1e-3 * optimum
    assert all(plan.lower_bound <= optimum + 1e-12 for plan in values)


def test_rounding_meets_marginals_and_moves_no_more_than_the_error():
    cost, a, b = problem()
    rough = sinkhorn(cost, a, b, eps=0.01, max_iterations=3, rounded=False, halving=False).plan
    plan = round_to_marginals(rough, a, b)
    assert (plan.sum(1) - a).abs().max() < 1e-15 and (plan.sum(0) - b).abs().max() < 1e-15
    error = (rough.sum(1) - a).abs().sum() + (rough.sum(0) - b).abs().sum()
    assert (plan - rough).abs().sum() <= 2 * error + 1e-15  # lemma 7 of the paper


@pytest.mark.parametrize("which", [0, 1, 2])
def test_gradients_against_finite_differences(which):
    """eps is a share of the cost's range: the largest and the smallest entry are left as they are."""
    inputs = list(problem(shape=(2, 4, 5)))
    inputs[0][:, 0, 0], inputs[0][:, 1, 1] = 1.5, -0.5
    weight = torch.rand(2, 4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.double)

    def loss(*parts):
        return (sinkhorn(*parts, eps=0.1, tolerance=1e-14, rounded=False).plan * weight).sum()

    leaves = [part.clone().requires_grad_(k == which) for k, part in enumerate(inputs)]
    loss(*leaves).backward()
    gradient, step = leaves[which].grad, 1e-5
    direction = torch.rand(inputs[which].shape, generator=torch.Generator().manual_seed(2), dtype=torch.double) - 0.5
    if which == 0:
        direction[:, 0, 0] = direction[:, 1, 1] = 0
    else:
        direction -= direction.mean(-1, keepdim=True)  # masses keep their sum
    ends = []
    for sign in (1, -1):
        moved = list(inputs)
        moved[which] = inputs[which] + sign * step * direction
        with torch.no_grad():
            ends.append(loss(*moved))
    numeric = (ends[0] - ends[1]) / (2 * step)
    assert abs(numeric) > 1e-4
    torch.testing.assert_close((gradient * direction).sum(), numeric, rtol=1e-5, atol=1e-9)


def test_float32_costs_are_solved_in_float64():
    cost, a, b = problem()
    plan = sinkhorn(cost.float(), a.float(), b.float(), eps=0.05).plan
    assert plan.dtype == torch.float64
    assert abs(float(plan.sum()) - 1) < 1e-6
