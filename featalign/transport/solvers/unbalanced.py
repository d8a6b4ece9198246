"""Unbalanced transport: marginals are asked for at a price instead of enforced."""

from __future__ import annotations

import numpy as np

from featalign.errors import BadOption, TransportError
from featalign.transport.checks import positive
from featalign.transport.duals import c_transform, cut_bound, dual_value
from featalign.transport.plan import Plan
from featalign.transport.problem import Problem
from featalign.transport.simplex import simplex
from featalign.transport.solvers.registry import solver

DIVERGENCES = ("kl", "tv")
NEVER = 1e4  # of the price: a pair as dear as this carries nothing in float64
LARGEST_DUAL = 40.0  # of the price: exp(-40) is below the rounding of 1


@solver("unbalanced")
def unbalanced(
    problem: Problem,
    *,
    price: float = 1.0,
    divergence: str = "kl",
    max_iterations: int = 5000,
    tolerance: float = 1e-9,
) -> Plan:
    """Plan of `min <C, T> + price (D(T 1 | a) + D(T^T 1 | b))`, D the KL divergence or the total variation
    (Liero, Mielke and Savare 2018; Chizat et al. 2018).

    `price` is in units of the cost. KL is solved by majorisation-minimisation (Chapel et al. 2021); TV is a partial
    problem (a unit left over on either side costs `price`) and is solved exactly. `lower_bound` is the value of the
    dual at feasible potentials. KL transport loses most true pairs of dictionaries that overlap in part: it is
    offered, `partial` is the default.

    Raises `BadOption` on an unknown divergence, `TransportError` on ill-posed masses or a plan that vanishes, for a
    price far below the cost.
    """
    if divergence not in DIVERGENCES:
        raise BadOption(f"divergence={divergence!r}: choices are {', '.join(DIVERGENCES)}")
    price = positive(price, "price")
    n, m = problem.shape
    a = np.full(n, 1.0 / n) if problem.a is None else problem.a
    b = np.full(m, 1.0 / m) if problem.b is None else problem.b
    cost = problem.matrix
    if divergence == "tv":
        return _total_variation(cost, a, b, price)
    if cost.min() < 0:
        raise TransportError("unbalanced transport wants costs of 0 or more; add a constant to the cost")
    coupling, iterations = _kl_plan(cost, a, b, price, max_iterations, tolerance)
    if not np.isfinite(coupling).all() or coupling.sum() <= 1e-12 * a.sum():
        raise TransportError(
            f"the plan vanishes at price={price:g} against costs of {np.median(cost):.3g}; raise price"
        )
    rows, columns = coupling.sum(1), coupling.sum(0)
    paid = coupling * np.where(coupling > 0, cost, 0.0)
    value = float(paid.sum()) + price * (_kl(rows, a) + _kl(columns, b))
    f, g = np.zeros(n), np.zeros(m)
    live_a, live_b = a > 0, b > 0
    among = cost[np.ix_(live_a, live_b)]
    f[live_a], g[live_b] = _feasible(_potential(rows, a, price)[live_a], _potential(columns, b, price)[live_b], among)
    f[~live_a] = c_transform(cost[~live_a][:, live_b], g[live_b])
    g[~live_b] = c_transform(cost.T[~live_b], f)
    bound = price * float(a @ -np.expm1(-f / price) + b @ -np.expm1(-g / price))
    bound = cut_bound(bound, value, price * (a.sum() + b.sum()))
    reason = f"KL marginals at price {price:g}: majorisation-minimisation"
    return Plan(coupling, a, b, value, bound, "unbalanced", reason, iterations, (f, g))


def _kl_plan(
    cost: np.ndarray, a: np.ndarray, b: np.ndarray, price: float, max_iterations: int, tolerance: float
) -> tuple[np.ndarray, int]:
    """`T <- K T / (T 1 x T^T 1)^(1/2)`, `K = (a x b)^(1/2) exp(-C / (2 price))` (Chapel et al. 2021, equation 14)."""
    sources, targets = np.flatnonzero(a > 0), np.flatnonzero(b > 0)
    ratio = np.minimum(cost[np.ix_(sources, targets)] / price, NEVER)
    unit = 4.0 ** np.round(np.log2(a.sum()) / 2)  # costs no digit, and keeps products of masses in range
    a, b = a[sources] / unit, b[targets] / unit
    part, total, iteration = a[:, None] * b[None, :], a.sum(), 0
    kernel = (a[:, None] ** 0.5) * (b[None, :] ** 0.5) * np.exp(-ratio / 2)
    while iteration < max_iterations:
        iteration += 1
        before = part
        spread = (part.sum(1, keepdims=True) ** 0.5) * (part.sum(0, keepdims=True) ** 0.5) + 1e-16 * total
        part = kernel * part / spread
        if np.sqrt(((part - before) ** 2).sum()) < tolerance * total:
            break
    coupling = np.zeros(cost.shape)
    coupling[np.ix_(sources, targets)] = part * unit
    return coupling, iteration


def _total_variation(cost: np.ndarray, a: np.ndarray, b: np.ndarray, price: float) -> Plan:
    """`price` per unit missing on either side; more than asked never pays: dummies take what is left over."""
    n, m = cost.shape
    padded = np.full((n + 1, m + 1), price)
    padded[:n, :m] = np.minimum(cost, 2 * price)  # a pair worth more than two unmatched units is not used
    padded[n, m] = 0.0
    wide_a, wide_b = np.append(a, b.sum()), np.append(b, a.sum())
    found = simplex(padded, wide_a, wide_b)
    f, g = found.f, found.g
    coupling = found.coupling[:n, :m] * (cost < 2 * price)
    left = a.sum() + b.sum() - 2 * coupling.sum()
    value = float((coupling * np.where(coupling > 0, cost, 0.0)).sum() + price * left)
    bound = dual_value(f, g, wide_a, wide_b, value)
    reason = f"total variation at price {price:g}: network simplex with dummies"
    return Plan(coupling, a, b, value, bound, "unbalanced", reason, 0, (f[:n] + g[m], g[:m] - g[m]))


def _kl(masses: np.ndarray, reference: np.ndarray) -> float:
    live = masses > 0
    return float((masses[live] * np.log(masses[live] / reference[live])).sum() - masses.sum() + reference.sum())


def _potential(masses: np.ndarray, reference: np.ndarray, price: float) -> np.ndarray:
    """Dual of a marginal, `-price log(mass / reference)`; where nothing arrived, as large as floats can tell apart."""
    live = (masses > 0) & (reference > 0)
    ratio = np.log(np.where(live, masses, 1.0) / np.where(live, reference, 1.0))
    return np.where(~live & (reference > 0), LARGEST_DUAL * price, -price * ratio)


def _feasible(f: np.ndarray, g: np.ndarray, cost: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lower both potentials evenly where `f_i + g_j > C_ij`."""
    excess = np.maximum((f[:, None] + g[None, :] - cost).max(axis=1), 0)
    f = f - excess / 2
    return f, g - np.maximum((f[:, None] + g[None, :] - cost).max(axis=0), 0)
