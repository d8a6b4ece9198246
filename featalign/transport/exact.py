"""Exact transport: assignment for equal widths and uniform masses, network simplex for everything else."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import numpy as np
import scipy.sparse
from scipy.optimize import linear_sum_assignment

from featalign.errors import BadOption, TransportError
from featalign.transport.costs import DenseCost
from featalign.transport.duals import assignment_duals, c_transform, dual_value
from featalign.transport.plan import Plan
from featalign.transport.problem import as_cost, balanced_masses, is_uniform
from featalign.transport.sparse import generate_columns

LARGE = 2000  # assignments from this size on are solved on candidate pairs, 1.3 to 6 times faster than on the matrix


def exact(cost: Any, a: Any = None, b: Any = None, warm: Plan | None = None, max_iterations: int = 10_000_000) -> Plan:
    """Optimal plan of `cost [n, m]` between masses `a [n]` and `b [m]` (uniform when None).

    Square and uniform problems are assignments (same optimum, 5 to 20 times faster); others go to POT's network
    simplex. The lower bound comes from potentials that are feasible on the full cost; for small assignments they are
    recovered when first looked at. `warm`, a plan of a similar problem of the same shape, starts the solver.

    Raises `TransportError` on masses that do not sum alike, `NotFinite` on NaN or infinity.
    """
    cost = as_cost(cost)
    if warm is not None and warm.shape != cost.shape:
        raise BadOption(f"warm= holds a plan of shape {warm.shape} and the cost is {cost.shape}")
    square = cost.shape[0] == cost.shape[1]
    if a is None and b is None and square:
        masses = np.full(len(cost), 1.0 / len(cost))
        return _assignment(cost, masses, masses, warm)
    a, b = balanced_masses(a, b, cost.shape)
    if square and is_uniform(a) and is_uniform(b):
        return _assignment(cost, a, b, warm)
    return _simplex(cost, a, b, warm, max_iterations)


def _assignment(cost: np.ndarray, a: np.ndarray, b: np.ndarray, warm: Plan | None) -> Plan:
    n = len(cost)
    g = np.zeros(n) if warm is None or warm.potentials is None else warm.potentials[1]
    reduced = cost if warm is None else cost - g
    targets = _distinct_minima(reduced)
    if targets is not None:
        reason = "equal widths, uniform masses, every source has a cheapest target of its own"
        later = {"potentials": functools.partial(_minima_duals, reduced, targets, g)}
        return _assigned(cost, a, b, targets, reason, later)
    if n >= LARGE:
        plan = generate_columns(DenseCost.checked(cost), a, b, None, True, 48, 1e-12, 12, warm)
        if plan.gap <= 1e-9 * float(np.abs(plan.coupling.data @ np.abs(cost)[plan.coupling.nonzero()])):
            reason = f"equal widths and uniform masses: assignment on {plan.reason}"
            return Plan(plan.coupling, a, b, plan.value, plan.lower_bound, "exact", reason, 0, plan.potentials)
    # column reduction (Jonker and Volgenant 1987): the same optimum, and shortest paths end up to 1.7 times sooner
    targets = linear_sum_assignment(cost - cost.min(axis=0))[1]
    later = {"potentials": functools.partial(_residual_duals, cost, targets)}
    return _assigned(cost, a, b, targets, "equal widths and uniform masses: assignment", later)


def _distinct_minima(reduced: np.ndarray) -> np.ndarray | None:
    """Cheapest target of every row if no two share one: then that is the optimum. Looks at a few rows first."""
    few = reduced[::4].argmin(axis=1).tolist()
    if len(set(few)) < len(few):
        return None
    targets = reduced.argmin(axis=1)
    return targets if np.bincount(targets).max() == 1 else None


def _assigned(
    cost: np.ndarray, a: np.ndarray, b: np.ndarray, targets: np.ndarray, reason: str, later: dict[str, Any]
) -> Plan:
    known = {"a": a, "b": b, "method": "exact", "reason": reason, "iterations": 0}
    later["value"] = functools.partial(_value, cost, targets)
    later["coupling"] = functools.partial(_permutation, targets)
    later["lower_bound"] = _bound
    return Plan.deferred(known, later)


def _value(cost: np.ndarray, targets: np.ndarray, plan: Plan) -> float:
    return float(plan.a @ cost[np.arange(len(targets)), targets])


def _permutation(targets: np.ndarray, plan: Plan) -> scipy.sparse.csr_array:
    n = len(targets)
    return scipy.sparse.csr_array((plan.a, targets, np.arange(n + 1)), shape=(n, n))


def _bound(plan: Plan) -> float:
    f, g = plan.potentials  # type: ignore[misc]
    return dual_value(f, g, plan.a, plan.b, plan.value)


def _minima_duals(reduced: np.ndarray, targets: np.ndarray, g: np.ndarray, plan: Plan) -> tuple[np.ndarray, np.ndarray]:
    return reduced[np.arange(len(targets)), targets], g


def _residual_duals(cost: np.ndarray, targets: np.ndarray, plan: Plan) -> tuple[np.ndarray, np.ndarray]:
    return assignment_duals(cost, np.arange(len(targets)), targets)


def _simplex(cost: np.ndarray, a: np.ndarray, b: np.ndarray, warm: Plan | None, max_iterations: int) -> Plan:
    coupling, g = simplex(cost, a, b, max_iterations, None if warm is None else warm.potentials)
    f = c_transform(cost, g)
    value = float((coupling * cost).sum())
    reason = "unequal widths or masses: network simplex"
    return Plan(coupling, a, b, value, dual_value(f, g, a, b, value), "exact", reason, 0, (f, g))


def simplex(
    cost: np.ndarray,
    a: np.ndarray,
    b: np.ndarray,
    max_iterations: int = 10_000_000,
    start: tuple[np.ndarray, np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """POT's network simplex on the support of both masses: plan `[n, m]` and target potentials `[m]`.

    Raises `TransportError` when it does not reach the optimum (POT itself warns and returns a zero plan).
    """
    import ot

    total, sources, targets = a.sum(), np.flatnonzero(a > 0), np.flatnonzero(b > 0)
    scale = float(np.abs(cost).max()) or 1.0
    inner = cost if len(sources) == len(a) and len(targets) == len(b) else cost[np.ix_(sources, targets)]
    inner = np.ascontiguousarray(inner / scale)
    options: dict[str, Any] = {"numItermax": max_iterations, "log": True, "check_marginals": False}
    if start is not None:
        options["potentials_init"] = (start[0][sources] / scale, start[1][targets] / scale)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        part, log = ot.emd(a[sources] / total, b[targets] / b.sum(), inner, **options)
    if log["warning"] is not None:
        raise TransportError(f"network simplex on {inner.shape} stopped: {log['warning']}; raise max_iterations")
    g = np.full(cost.shape[1], np.nan)
    g[targets] = np.asarray(log["v"]) * scale
    if inner.shape == cost.shape:
        return part * total, g
    coupling = np.zeros(cost.shape)
    coupling[np.ix_(sources, targets)] = part * total
    empty = np.isnan(g)
    if empty.any():  # targets without mass: any feasible potential serves
        f = c_transform(cost[np.ix_(sources, targets)], g[targets])
        g[empty] = (cost[np.ix_(sources, np.flatnonzero(empty))] - f[:, None]).min(axis=0)
    return coupling, g
