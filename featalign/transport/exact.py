"""Exact transport: assignment for equal widths and uniform masses, network simplex for everything else."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import scipy.sparse
from scipy.optimize import linear_sum_assignment

from featalign.errors import TransportError
from featalign.transport.duals import assignment_duals, c_transform, dual_value
from featalign.transport.plan import Plan
from featalign.transport.problem import as_cost, balanced_masses, is_uniform


def exact(cost: Any, a: Any = None, b: Any = None, max_iterations: int = 10_000_000) -> Plan:
    """Optimal plan of `cost [n, m]` between masses `a [n]` and `b [m]` (uniform when None).

    Square and uniform problems are assignments (same optimum, 5 to 20 times faster); others go to POT's network
    simplex. The lower bound comes from potentials that are feasible on the full cost.

    Raises `TransportError` on masses that do not sum alike, `NotFinite` on NaN or infinity.
    """
    cost = as_cost(cost)
    a, b = balanced_masses(a, b, cost.shape)
    if cost.shape[0] == cost.shape[1] and is_uniform(a) and is_uniform(b):
        return _assignment(cost, a, b)
    return _simplex(cost, a, b, max_iterations)


def _assignment(cost: np.ndarray, a: np.ndarray, b: np.ndarray) -> Plan:
    rows, columns = linear_sum_assignment(cost)
    f, g = assignment_duals(cost, rows, columns)
    coupling = scipy.sparse.csr_array((a, (rows, columns)), shape=cost.shape)
    value = float(a @ cost[rows, columns])
    reason = "equal widths and uniform masses: assignment"
    return Plan(coupling, a, b, value, dual_value(f, g, a, b, value), "exact", reason, 0, (f, g))


def _simplex(cost: np.ndarray, a: np.ndarray, b: np.ndarray, max_iterations: int) -> Plan:
    coupling, g = simplex(cost, a, b, max_iterations)
    f = c_transform(cost, g)
    value = float((coupling * cost).sum())
    reason = "unequal widths or masses: network simplex"
    return Plan(coupling, a, b, value, dual_value(f, g, a, b, value), "exact", reason, 0, (f, g))


def simplex(
    cost: np.ndarray, a: np.ndarray, b: np.ndarray, max_iterations: int = 10_000_000
) -> tuple[np.ndarray, np.ndarray]:
    """POT's network simplex on the support of both masses: plan `[n, m]` and target potentials `[m]`.

    Raises `TransportError` when it does not reach the optimum (POT itself warns and returns a zero plan).
    """
    import ot

    total, sources, targets = a.sum(), np.flatnonzero(a > 0), np.flatnonzero(b > 0)
    scale = float(np.abs(cost).max()) or 1.0
    inner = np.ascontiguousarray(cost[np.ix_(sources, targets)]) / scale
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        part, log = ot.emd(
            a[sources] / total,
            b[targets] / b.sum(),
            inner,
            numItermax=max_iterations,
            log=True,
            check_marginals=False,
        )
    if log["warning"] is not None:
        raise TransportError(f"network simplex on {inner.shape} stopped: {log['warning']}; raise max_iterations")
    coupling = np.zeros(cost.shape)
    coupling[np.ix_(sources, targets)] = part * total
    g = np.full(cost.shape[1], np.nan)
    g[targets] = np.asarray(log["v"]) * scale
    empty = np.isnan(g)
    if empty.any():  # targets without mass: any feasible potential serves
        f = c_transform(cost[np.ix_(sources, targets)], g[targets])
        g[empty] = (cost[np.ix_(sources, np.flatnonzero(empty))] - f[:, None]).min(axis=0)
    return coupling, g
