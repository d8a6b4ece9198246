"""Partial transport: mass may stay unmatched, at a price per unit of mass or down to a given mass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse
from scipy.optimize import linear_sum_assignment

from featalign.errors import BadOption
from featalign.transport.checks import ROUNDING, as_cost, positive, same_total
from featalign.transport.costs import GroundCost
from featalign.transport.duals import assignment_duals, dual_value
from featalign.transport.plan import Plan
from featalign.transport.problem import Problem
from featalign.transport.simplex import simplex
from featalign.transport.solvers.registry import solver


@solver("partial")
def partial(problem: Problem, *, threshold: float | None = None, mass: float | str | None = None) -> Plan:
    """Plan that leaves mass unmatched; give `threshold` or `mass`.

    Every unit carries `1 / max(n, m)` when no masses are given; given masses need not sum alike.

    With `threshold=tau` it solves `min <C, T> + tau (M - |T|)`, `T 1 <= a`, `T^T 1 <= b`, `M = min(|a|, |b|)`: a unit
    of mass that could be matched and is not costs `tau`. For uniform masses that is an assignment on `min(C, tau)`
    whose pairs at `tau` are dropped (exact, and 100 times cheaper than padding). With `mass=s` it matches exactly the
    mass `s` at least cost (Chapel, Alaya and Gasso 2020), with `mass="elbow"` the mass at the bend of `mass_curve`.

    Raises `BadOption` unless one of the two options is given and positive, `InfeasibleError` when the mask does not
    let so much mass through.
    """
    cost, (a, b) = problem.matrix, problem.loose()
    if (threshold is None) == (mass is None):
        raise BadOption(
            "partial transport wants threshold= (price of unmatched mass) or mass= (mass to match), not both"
        )
    if mass == "elbow":
        return partial(problem, threshold=mass_curve(problem).elbow_price)
    if isinstance(mass, str):
        raise BadOption(f"mass={mass!r}: give a number, or 'elbow'")
    if mass is not None:
        return _by_mass(cost, a, b, positive(mass, "mass", upper=min(a.sum(), b.sum()) * (1 + 1e-12)))
    tau = float(threshold)  # type: ignore[arg-type]
    if not np.isfinite(tau):
        raise BadOption(f"threshold={threshold!r}: give a finite cost, for example from null_threshold()")
    if problem.is_uniform and same_total(a[0], b[0], ROUNDING):
        return _clipped_assignment(cost, a, b, tau)
    return _clipped_simplex(cost, a, b, tau)


@dataclass(frozen=True)
class MassCurve:
    """Least cost of matching a mass: `values [p]` at `masses [p]`, convex, with slope `prices [p]`.

    `elbow` is the index where the curve is farthest below the chord between its ends.
    """

    masses: np.ndarray
    values: np.ndarray
    prices: np.ndarray
    elbow: int

    @property
    def elbow_price(self) -> float:
        """What the unit of mass costs at the elbow; `partial(threshold=...)` stops there."""
        return float(self.prices[self.elbow])


def mass_curve(cost: Any, a: Any = None, b: Any = None, points: int = 24) -> MassCurve:
    """The cost of matching more and more mass, exact at `points` masses: each is an optimum for some price.

    As many again are placed around the elbow. `cost` may be a `Problem`; masses as in `partial`. Raises as `partial`.
    """
    problem = cost if isinstance(cost, Problem) else Problem(cost, a, b)
    known = problem.matrix[np.isfinite(problem.matrix)]
    low, high = float(known.min()), float(known.max())
    span = (high - low) or 1.0
    full = partial(problem, threshold=high + span)
    used = problem.matrix[scipy.sparse.csr_array(full.coupling).nonzero()]
    prices = np.unique(np.append(np.quantile(used, np.linspace(0, 1, points)) + 1e-9 * span, high + span))
    curve = _curve(problem, prices, low)
    near = prices[max(curve.elbow - 1, 0)], prices[min(curve.elbow + 1, len(prices) - 1)]
    return _curve(problem, np.unique(np.append(prices, np.linspace(*near, points))), low)


def _curve(problem: Problem, prices: np.ndarray, low: float) -> MassCurve:
    plans = [partial(problem, threshold=price) for price in prices]
    most = min(part.sum() for part in problem.loose())
    masses = np.array([plan.mass for plan in plans])
    values = np.array([plan.value - price * (most - plan.mass) for plan, price in zip(plans, prices)])
    above_least = values - low * masses
    below_chord = masses / masses[-1] - above_least / (above_least[-1] or 1.0)
    return MassCurve(masses, values, prices, int(below_chord.argmax()))


def _clipped_assignment(cost: np.ndarray, a: np.ndarray, b: np.ndarray, tau: float) -> Plan:
    clipped = np.minimum(cost, tau)
    if cost.shape[0] <= cost.shape[1]:
        rows, columns = linear_sum_assignment(clipped)
        f, g = assignment_duals(clipped, rows, columns)
    else:
        columns, rows = linear_sum_assignment(clipped.T)
        g, f = assignment_duals(np.ascontiguousarray(clipped.T), columns, rows)
    unit = a[0]
    value = float(unit * clipped[rows, columns].sum())
    kept = cost[rows, columns] < tau
    rows, columns = rows[kept], columns[kept]
    coupling = scipy.sparse.csr_array((np.full(len(rows), unit), (rows, columns)), shape=cost.shape)
    reason = f"price {tau:.6g} of unmatched mass, uniform masses: assignment on the clipped cost"
    return Plan(coupling, a, b, value, dual_value(f, g, a, b, value), "partial", reason, 0, (f, g))


def _clipped_simplex(cost: np.ndarray, a: np.ndarray, b: np.ndarray, tau: float) -> Plan:
    """The side with more mass sends its surplus to a dummy at no cost."""
    clipped, surplus = np.minimum(cost, tau), a.sum() - b.sum()
    pad_row, pad_column = int(surplus < 0), int(surplus > 0)
    padded = np.pad(clipped, ((0, pad_row), (0, pad_column)))
    wide_a = np.append(a, [-surplus] * pad_row)
    wide_b = np.append(b, [surplus] * pad_column)
    found = simplex(padded, wide_a, wide_b)
    f, g, value = found.f, found.g, found.value
    n, m = cost.shape
    level = f[n] if pad_row else -g[m] if pad_column else 0.0  # the constant that puts the dummy's potential at zero
    f, g = f[:n] - level, g[:m] + level
    coupling = np.where(cost < tau, found.coupling[:n, :m], 0.0)
    reason = f"price {tau:.6g} of unmatched mass, general masses: network simplex on the clipped cost"
    return Plan(coupling, a, b, value, dual_value(f, g, a, b, value), "partial", reason, 0, (f, g))


def _by_mass(cost: np.ndarray, a: np.ndarray, b: np.ndarray, mass: float) -> Plan:
    """Dummies take the mass that stays: `|a| - s` at no cost, and never each other."""
    n, m = cost.shape
    spare_a, spare_b = max(a.sum() - mass, 0.0), max(b.sum() - mass, 0.0)
    shift = float(cost.min())  # the simplex below must not gain by leaving mass on the dummies
    padded = np.zeros((n + 1, m + 1))
    padded[:n, :m] = cost - shift
    padded[n, m] = 4 * float(padded[np.isfinite(padded)].max()) or 1.0
    wide_a, wide_b = np.append(a, spare_b), np.append(b, spare_a)
    found = simplex(padded, wide_a, wide_b * (wide_a.sum() / wide_b.sum()))
    coupling = found.coupling[:n, :m]
    paid = float((coupling * np.where(np.isinf(cost), 0.0, padded[:n, :m])).sum())
    proved = dual_value(found.f, found.g, wide_a, wide_b, paid)
    value, bound = (part + shift * mass for part in (paid, proved))
    reason = f"mass {mass:.6g} to match: network simplex with dummies"
    return Plan(coupling, a, b, value, bound, "partial", reason, 0, (found.f[:n], found.g[:m]))


def null_threshold(null_cost: Any, quantile: float = 0.05, rows: int = 1024) -> float:
    """Price of unmatched mass from a null: the `quantile` of every source's lowest cost under `null_cost [n, m]`.

    `null_cost` is the ground cost after the samples of one client were shuffled, so that no pair is real
    (`GroundCost.null`); at 0.05, 95 % of the best matches found by chance are refused (for the correlation cost: the
    95 % quantile of best-match correlations). Of a ground-cost object at most `rows` evenly spaced sources are used.

    Raises `NotFinite` or `TransportError` on a malformed cost, `BadOption` on a quantile outside [0, 1].
    """
    if not 0 <= quantile <= 1:
        raise BadOption(f"quantile={quantile!r}: give a number from 0 to 1")
    if isinstance(null_cost, GroundCost):
        n = null_cost.shape[0]
        null_cost = null_cost.rows(np.linspace(0, n - 1, min(n, rows)).astype(int))
    return float(np.quantile(as_cost(null_cost).min(axis=1), quantile))
