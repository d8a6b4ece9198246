"""Transport of dictionaries: candidates, an exact solver on them, and a certificate on the full cost.

Restricted to candidate pairs the problem is small; its dual potentials, made feasible on the full cost in one sweep,
bound what the restriction can have lost. Pairs that break the potentials join the candidates (column generation)
until the gap is closed to the tolerance. The cost is only ever read by blocks of rows.
"""

from __future__ import annotations

import dataclasses
import logging

import numpy as np
import scipy.sparse
from scipy.sparse.csgraph import min_weight_full_bipartite_matching

from featalign.errors import BadOption, InfeasibleError, TransportError
from featalign.transport.candidates import Candidates, select, sweep
from featalign.transport.checks import ROUNDING, positive, same_total
from featalign.transport.costs import GroundCost, MaskedCost, never_paid
from featalign.transport.duals import dual_value, proven
from featalign.transport.plan import Plan
from featalign.transport.problem import Problem
from featalign.transport.simplex import UNDELIVERED
from featalign.transport.solvers.registry import solver

log = logging.getLogger(__name__)

DEAR = 1e6  # a candidate this many times dearer than any that an optimum uses costs the solvers their digits


@solver("sparse")
def sparse(
    problem: Problem,
    *,
    threshold: float | None = None,
    candidates: int = 48,
    tolerance: float = 1e-4,
    max_sweeps: int = 6,
    warm: Plan | None = None,
) -> Plan:
    """Plan of a large cost, best a `GroundCost`, solved on about `candidates` pairs per row and column.

    With `threshold` the problem is partial, as in `partial`; otherwise balanced. Column generation (Gilmore and Gomory
    1961) stops when the relative gap between the value and the bound on the full cost is at most `tolerance`, or after
    `max_sweeps` sweeps over it; the gap reached is in the plan. `warm`, a plan of a similar problem of the same shape,
    aims the candidates.

    Raises `TransportError` on ill-posed masses, `InfeasibleError` when no plan keeps to the mask, `BadOption` on
    options out of range.
    """
    positive(candidates, "candidates")
    if tolerance < 0:
        raise BadOption(f"tolerance={tolerance!r}: give a relative gap of 0 or more")
    if warm is not None and warm.shape != problem.shape:
        raise BadOption(f"warm= holds a plan of shape {warm.shape} and the cost is {problem.shape}")
    cost = problem.ground
    if threshold is not None and isinstance(cost, MaskedCost):  # forbidden pairs must not beat leaving mass unmatched
        cost = MaskedCost(cost.cost, cost.mask, max(cost.level, threshold + abs(threshold)))
    a, b = problem.balanced() if threshold is None else problem.loose()
    uniform = problem.is_uniform and same_total(a[0], b[0], ROUNDING)
    if cost.shape[0] > cost.shape[1]:
        plan = generate_columns(cost.transposed(), b, a, threshold, uniform, candidates, tolerance, max_sweeps, warm)
        plan = _transposed(plan)
    else:
        plan = generate_columns(cost, a, b, threshold, uniform, candidates, tolerance, max_sweeps, warm)
    return _keep_to(cost, plan, tolerance) if isinstance(cost, MaskedCost) and threshold is None else plan


def _keep_to(cost: MaskedCost, plan: Plan, tolerance: float) -> Plan:
    """The plan, if it holds nothing off the mask: forbidden pairs are so dear that it would not if it could."""
    entries = scipy.sparse.coo_array(plan.coupling)
    off = ~cost.mask[entries.row, entries.col]
    astray = float(entries.data[off].sum())
    if astray == 0:
        return plan
    if astray <= UNDELIVERED * float(plan.a.sum()):  # rounding, at the price of forbidden pairs
        keep = scipy.sparse.coo_array((entries.data[~off], (entries.row[~off], entries.col[~off])), plan.shape)
        value = plan.value - float(astray * cost.level)
        coupling, bound = scipy.sparse.csr_array(keep), min(plan.lower_bound, value)
        return dataclasses.replace(plan, coupling=coupling, value=value, lower_bound=bound)
    if plan.gap > max(tolerance, 1e-9) * abs(plan.value):
        raise TransportError(
            f"{plan.iterations} sweeps found no plan that keeps to the mask; raise max_sweeps or candidates, or use "
            "method='exact'"
        )
    raise InfeasibleError(
        f"no plan keeps to the mask: about {astray:.6g} of the mass {plan.a.sum():.6g} finds no allowed pair; allow "
        "more pairs, or use threshold="
    )


def generate_columns(
    cost: GroundCost,
    a: np.ndarray,
    b: np.ndarray,
    price: float | None,
    uniform: bool,
    k: int,
    tolerance: float,
    max_sweeps: int,
    warm: Plan | None = None,
) -> Plan:
    """Column generation for `n <= m`; see `sparse`. Uniform masses are matched, others go to network simplex."""
    n, m = cost.shape
    g = np.zeros(m)
    if warm is not None and warm.potentials is not None:
        g = warm.potentials[1 if warm.shape == cost.shape else 0]
    pairs = select(cost, k, g, price, _staircase(a, b) if price is None else None)
    pay_a, pay_b = (np.inf, np.inf) if price is None else _prices(a, b, price)
    solve = _match if uniform else _simplex
    value, bound, coupling, potentials, level = np.inf, -np.inf, None, None, np.inf
    for swept in range(1, max_sweeps + 1):
        restricted, paid, f, g = solve(pairs.clipped(level), a, b, price)
        if level < np.inf:
            paid += _understated(pairs, restricted, level)
        g = np.minimum(g, pay_b)  # what unmatched mass costs bounds the potentials on either side
        if pairs.complete:  # pairs left out cost the price or more, and f + g never exceeds that
            feasible, keys, costs = pairs.c_transform(g, pay_a), pairs.keys[:0], pairs.costs[:0]
        else:
            feasible, keys, costs = sweep(cost, f, g, pay_a, k)
        proved = proven(feasible, g, a, b, paid)
        if paid < value:
            value, coupling = paid, restricted
        if proved > bound:
            bound, potentials = proved, (feasible, g)
        log.debug(
            "sweep %d: %d pairs, value %.6g, bound %.6g, %d broken", swept, len(pairs.keys), value, bound, len(keys)
        )
        if value - bound <= tolerance * abs(value):
            break
        before, level = level, min(level, _level(pairs, coupling))
        if len(keys) == 0 and level == before:
            break
        pairs = pairs.merged(keys, costs)
    proof = "all that beat the price" if pairs.complete else f"certified on the full cost in {swept} sweeps"
    reason = f"{len(pairs.keys)} candidate pairs of {n} x {m}, {proof}"
    method = "sparse" if price is None else "partial"
    f, g = potentials  # type: ignore[misc]
    return Plan(coupling, a, b, value, dual_value(f, g, a, b, value), method, reason, swept, potentials)


def _level(pairs: Candidates, coupling: scipy.sparse.csr_array) -> float:
    """Where to clip the candidates' costs: infinity unless some are `DEAR` beside what the plan so far needs."""
    entries = scipy.sparse.coo_array(coupling)
    used = entries.data > 16 * np.finfo(np.float64).eps * float(entries.data.sum())
    if not used.any():
        return np.inf
    keys = entries.row[used] * np.int64(pairs.shape[1]) + entries.col[used]
    paid = pairs.costs[np.searchsorted(pairs.keys, keys)]
    level = never_paid(float(pairs.costs.min()), float(np.max(paid)), pairs.shape)
    return level if float(pairs.costs.max()) > DEAR * abs(level) else np.inf


def _understated(pairs: Candidates, coupling: scipy.sparse.csr_array, level: float) -> float:
    """What the plan pays above the level at which costs were clipped."""
    return float(coupling.multiply(pairs.matrix(np.maximum(pairs.costs - level, 0.0))).sum())


def _transposed(plan: Plan) -> Plan:
    f, g = plan.potentials  # type: ignore[misc]
    return dataclasses.replace(
        plan, coupling=scipy.sparse.csr_array(plan.coupling.T), a=plan.b, b=plan.a, potentials=(g, f)
    )


def _prices(a: np.ndarray, b: np.ndarray, price: float) -> tuple[float, float]:
    """What unmatched mass costs on either side: the side with less mass pays, the surplus of the other is free."""
    return (price, 0.0) if a.sum() <= b.sum() * (1 + ROUNDING) else (0.0, price)


def _match(
    pairs: Candidates, a: np.ndarray, b: np.ndarray, price: float | None
) -> tuple[scipy.sparse.csr_array, float, np.ndarray, np.ndarray]:
    """Assignment on the candidates; with a price every source has a target of its own at that price."""
    n, m = pairs.shape
    low = float(pairs.costs.min(initial=np.inf if price is None else price))
    span = max(float(pairs.costs.max(initial=low)), price if price is not None else low) - low or 1.0
    graph = pairs.matrix((pairs.costs - low) / span + 1.0)  # the solver drops zeros and wants them apart from none
    if price is not None:
        graph = scipy.sparse.hstack([graph, scipy.sparse.diags_array(np.full(n, (price - low) / span + 1.0))], "csr")
    try:
        rows, columns = min_weight_full_bipartite_matching(graph)
    except ValueError as error:
        raise TransportError(f"no perfect matching among {len(pairs.keys)} candidate pairs of {pairs.shape}") from error
    target = np.full(n, -1)
    target[rows] = np.where(columns < m, columns, -1)
    f, g, matched = _residual_duals(pairs, target, price)
    value = float(a[0] * matched.sum())
    kept = np.flatnonzero((target >= 0) & (matched < (np.inf if price is None else price)))
    coupling = scipy.sparse.csr_array((a[kept], (kept, target[kept])), shape=pairs.shape)
    return coupling, value, f, g


def _residual_duals(
    pairs: Candidates, target: np.ndarray, price: float | None, rounds: int = 5000
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Potentials of the optimal matching on the candidates (Bellman-Ford from zero), and what each source pays."""
    n, m = pairs.shape
    pays = np.full(n, 0.0 if price is None else price)
    own = target[pairs.sources] == pairs.targets
    pays[pairs.sources[own]] = pairs.costs[own]
    order = np.argsort(pairs.targets, kind="stable")
    columns, starts = np.unique(pairs.targets[order], return_index=True)
    extra = (pairs.costs - pays[pairs.sources])[order]
    through = np.where(target >= 0, target, m)[pairs.sources][order]
    g = np.zeros(m + 1)  # the last stands for every source's own target at the price
    tolerance = 1e-15 * max(float(np.abs(pays).max()), 1e-300)
    for _ in range(rounds):
        lowered = np.minimum.reduceat(g[through] + extra, starts) if len(starts) else g[columns]
        fell = lowered < g[columns] - tolerance
        if not fell.any():
            break
        g[columns[fell]] = lowered[fell]
    return pays - g[np.where(target >= 0, target, m)], g[:m], pays


def _simplex(
    pairs: Candidates, a: np.ndarray, b: np.ndarray, price: float | None
) -> tuple[scipy.sparse.csr_array, float, np.ndarray, np.ndarray]:
    """POT's network simplex on the candidates; with a price, dummies at both ends take what stays unmatched."""
    import ot

    n, m = pairs.shape
    i, j, c = pairs.sources, pairs.targets, pairs.costs
    wide_a, wide_b = a, b
    if price is not None:
        pay_a, pay_b = _prices(a, b, price)
        i = np.concatenate([i, np.arange(n), np.full(m + 1, n)])
        j = np.concatenate([j, np.full(n, m), np.arange(m + 1)])
        c = np.concatenate([c, np.full(n, pay_a), np.full(m, pay_b), [0.0]])
        wide_a, wide_b = np.append(a, b.sum()), np.append(b, a.sum())
    total, scale = wide_a.sum(), float(np.abs(c).max()) or 1.0
    live = (wide_a[i] > 0) & (wide_b[j] > 0)
    rows, columns = np.flatnonzero(wide_a > 0), np.flatnonzero(wide_b > 0)
    at = (np.searchsorted(rows, i[live]), np.searchsorted(columns, j[live]))
    # costs are moved off zero, since explicit zeros of a sparse matrix may be dropped on the way
    graph = scipy.sparse.coo_array((c[live] / scale + 2.0, at), shape=(len(rows), len(columns)))
    plan, record = ot.emd(
        wide_a[rows] / total, wide_b[columns] / total, graph, numItermax=10_000_000, log=True, check_marginals=False
    )
    if record["warning"] is not None or abs(plan.sum() - 1) > 1e-9:
        raise TransportError(f"network simplex on {len(c)} candidate pairs stopped: {record['warning']}")
    plan = plan.tocsr() * total
    u, v = np.full(len(wide_a), np.nan), np.full(len(wide_b), np.nan)
    u[rows], v[columns] = (np.asarray(record["u"]) - 2.0) * scale, np.asarray(record["v"]) * scale
    whole = scipy.sparse.coo_array(plan)
    whole = scipy.sparse.csr_array(
        (whole.data, (rows[whole.row], columns[whole.col])), shape=(len(wide_a), len(wide_b))
    )
    f, g = _completed(u, v, i, j, c)
    if price is not None:
        f, g = f + g[m], g - g[m]
    coupling = whole[:n, :m]
    value = float(coupling.multiply(pairs.matrix(pairs.costs)).sum())
    if price is not None:
        value += price * (min(a.sum(), b.sum()) - float(coupling.sum()))
    return coupling, value, f[:n], g[:m]


def _completed(
    u: np.ndarray, v: np.ndarray, i: np.ndarray, j: np.ndarray, c: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Potentials of rows and columns without mass, which the solver did not see: as large as the pairs allow."""
    g, f = v.copy(), u.copy()
    for mine, theirs, here, there in ((g, u, j, i), (f, g, i, j)):
        blank = np.isnan(mine)
        if blank.any():
            mine[blank] = np.inf
            use = blank[here] & np.isfinite(theirs[there])
            np.minimum.at(mine, here[use], c[use] - theirs[there[use]])
            mine[np.isinf(mine)] = 0.0
    return f, g


def _staircase(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Sorted keys of the north-west corner plan with the corners filled in: enough for a plan with these masses."""
    ends_a, ends_b = np.cumsum(a), np.cumsum(b)
    cuts = np.unique(np.concatenate([[0.0], ends_a, ends_b]))
    middle = (cuts[1:] + cuts[:-1]) / 2
    i = np.minimum(np.searchsorted(ends_a, middle), len(a) - 1)
    j = np.minimum(np.searchsorted(ends_b, middle), len(b) - 1)
    return np.unique(np.concatenate([i * len(b) + j, i[1:] * len(b) + j[:-1]]))
