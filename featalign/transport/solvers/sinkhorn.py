"""Entropic transport as a solver: Sinkhorn's plan moved onto the exact marginals, with its certificate."""

from __future__ import annotations

import numpy as np
import torch

from featalign.errors import InfeasibleError
from featalign.transport.duals import c_transform, dual_value
from featalign.transport.plan import Plan
from featalign.transport.problem import Problem
from featalign.transport.scaling import sinkhorn
from featalign.transport.simplex import simplex
from featalign.transport.solvers.registry import solver

SHARES = (1.0, 1 - 1e-6, 1 - 1e-4, 0.99, 0.9, 0.0)  # of the entropic plan that a mask may let stand
DELIVERED = 1e-12  # share of the mass that may be missing after scaling down


@solver("sinkhorn")
def entropic(
    problem: Problem,
    *,
    eps: float = 0.01,
    tolerance: float = 1e-6,
    max_iterations: int = 20_000,
    halving: bool = True,
    device: str = "cpu",
) -> Plan:
    """Entropic plan (Cuturi 2013), rounded to exact marginals, with a bound on the unregularised optimum.

    `eps`, a share of the range of the allowed costs, and `tolerance` as in `sinkhorn`. `value` is the transport cost of
    the rounded plan, so that `gap` holds the price of the regularisation too. Very dear pairs widen the range and with
    it the blur, which the gap shows; forbid pairs by the mask instead.

    Raises `TransportError` on ill-posed masses or an eps that float64 cannot carry, `InfeasibleError` when no plan
    keeps to the mask.
    """
    cost, (a, b) = problem.matrix, problem.balanced()
    if problem.is_masked:
        simplex(cost, a, b)  # says so if no plan keeps to the mask; the iteration would not
    on_device, on_a, on_b = (torch.from_numpy(part).to(device) for part in (cost, a, b))
    mask = torch.from_numpy(problem.mask).to(device) if problem.is_masked else None
    with torch.no_grad():
        result = sinkhorn(on_device, on_a, on_b, eps, tolerance, max_iterations, halving, mask=mask)
    coupling, g = result.plan.cpu().numpy(), result.g.cpu().numpy()
    if problem.is_masked:
        coupling = round_within(coupling, cost, a, b)
        value = float((coupling * np.where(problem.mask, cost, 0.0)).sum())
    else:
        value = float((coupling * cost).sum())
    live = b > 0
    f = c_transform(cost[:, live], g[live] - g[live].max())  # centred: constant costs then lose no digits
    g = c_transform(cost.T, f)
    reason = f"eps {eps:g} of the cost's range, marginal error {result.errors[-1]:.1e} before rounding"
    bound = dual_value(f, g, a, b, value)
    return Plan(coupling, a, b, value, bound, "sinkhorn", reason, result.iterations, (f, g))


def round_within(plan: np.ndarray, cost: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The plan `[n, m]` moved onto marginals `a`, `b` without leaving the pairs of finite cost.

    Scaled down as by Altschuler, Weed and Rigollet (2017, algorithm 2); what is then missing goes where it costs least
    instead of everywhere. If the allowed pairs cannot take that, a little more of the plan is taken back first.

    Raises `InfeasibleError` when no plan keeps to the allowed pairs.
    """
    for share in SHARES:
        part = share * plan * _at_most_one(a, plan.sum(1))[:, None]
        part = part * _at_most_one(b, part.sum(0))
        missing_a, missing_b = np.maximum(a - part.sum(1), 0), np.maximum(b - part.sum(0), 0)
        if missing_a.sum() <= DELIVERED * a.sum():
            return part
        try:
            return part + simplex(cost, missing_a, missing_b * (missing_a.sum() / missing_b.sum())).coupling
        except InfeasibleError:
            if share == SHARES[-1]:
                raise
    raise AssertionError("unreachable: the last share returns or raises")


def _at_most_one(wanted: np.ndarray, held: np.ndarray) -> np.ndarray:
    return np.minimum(1.0, wanted / np.where(held > 0, held, 1.0))
