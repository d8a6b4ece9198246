"""Unbalanced transport: marginals are asked for at a price instead of enforced (through POT)."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from featalign.errors import BadOption, TransportError
from featalign.transport.duals import c_transform, cut_bound, dual_value
from featalign.transport.exact import simplex
from featalign.transport.plan import Plan
from featalign.transport.problem import as_cost, as_masses, positive

DIVERGENCES = ("kl", "tv")


def unbalanced(
    cost: Any,
    a: Any = None,
    b: Any = None,
    price: float = 1.0,
    divergence: str = "kl",
    max_iterations: int = 5000,
    tolerance: float = 1e-9,
) -> Plan:
    """Plan of `min <C, T> + price (D(T 1 | a) + D(T^T 1 | b))`, D the KL divergence or the total variation.

    `price` is in units of the cost. KL is solved by majorisation-minimisation (Chapel et al. 2021); TV is a partial
    problem (a unit left over on either side costs `price`) and is solved exactly. `lower_bound` is the value of the
    dual at feasible potentials. KL transport loses most true pairs of dictionaries that overlap in part: it is
    offered, `partial` is the default.

    Raises `BadOption` on an unknown divergence, `TransportError` on ill-posed masses or a plan that vanishes, for a
    price far below the cost.
    """
    if divergence not in DIVERGENCES:
        raise BadOption(f"divergence={divergence!r}: choices are {', '.join(DIVERGENCES)}")
    cost = as_cost(cost)
    price = positive(price, "price")
    a, b = as_masses(a, cost.shape[0], "a"), as_masses(b, cost.shape[1], "b")
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
    value = float((coupling * cost).sum()) + price * (_kl(rows, a) + _kl(columns, b))
    f, g = _feasible(-price * _log_ratio(rows, a), -price * _log_ratio(columns, b), cost)
    bound = price * float(a @ -np.expm1(-f / price) + b @ -np.expm1(-g / price))
    reason = f"KL marginals at price {price:g}: majorisation-minimisation"
    return Plan(
        coupling,
        a,
        b,
        value,
        cut_bound(bound, value, price * (a.sum() + b.sum())),
        "unbalanced",
        reason,
        iterations,
        (f, g),
    )


def _kl_plan(
    cost: np.ndarray, a: np.ndarray, b: np.ndarray, price: float, max_iterations: int, tolerance: float
) -> tuple[np.ndarray, int]:
    import ot

    sources, targets = np.flatnonzero(a > 0), np.flatnonzero(b > 0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # costs and price enter by their ratio only; POT's own scale would underflow for tiny costs
        part, record = ot.unbalanced.mm_unbalanced(
            a[sources],
            b[targets],
            np.ascontiguousarray(cost[np.ix_(sources, targets)] / price),
            reg_m=1.0,
            div="kl",
            numItermax=max_iterations,
            stopThr=tolerance * a.sum(),
            log=True,
        )
    coupling = np.zeros(cost.shape)
    coupling[np.ix_(sources, targets)] = part
    return coupling, len(record.get("G", record.get("err", [])))


def _total_variation(cost: np.ndarray, a: np.ndarray, b: np.ndarray, price: float) -> Plan:
    """`price` per unit missing on either side; more than asked never pays: dummies take what is left over."""
    n, m = cost.shape
    padded = np.full((n + 1, m + 1), price)
    padded[:n, :m] = np.minimum(cost, 2 * price)  # a pair worth more than two unmatched units is not used
    padded[n, m] = 0.0
    wide_a, wide_b = np.append(a, b.sum()), np.append(b, a.sum())
    coupling, g = simplex(padded, wide_a, wide_b)
    f = c_transform(padded, g)
    coupling = coupling[:n, :m] * (cost < 2 * price)
    left = a.sum() + b.sum() - 2 * coupling.sum()
    value = float((coupling * cost).sum() + price * left)
    bound = dual_value(f, g, wide_a, wide_b, value)
    reason = f"total variation at price {price:g}: network simplex with dummies"
    return Plan(coupling, a, b, value, bound, "unbalanced", reason, 0, (f[:n] + g[m], g[:m] - g[m]))


def _kl(masses: np.ndarray, reference: np.ndarray) -> float:
    live = masses > 0
    return float((masses[live] * np.log(masses[live] / reference[live])).sum() - masses.sum() + reference.sum())


def _log_ratio(masses: np.ndarray, reference: np.ndarray) -> np.ndarray:
    live = (masses > 0) & (reference > 0)
    return np.log(np.where(live, masses, 1.0) / np.where(live, reference, 1.0))


def _feasible(f: np.ndarray, g: np.ndarray, cost: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lower both potentials evenly where `f_i + g_j > C_ij`."""
    excess = np.maximum((f[:, None] + g[None, :] - cost).max(axis=1), 0)
    f = f - excess / 2
    return f, g - np.maximum((f[:, None] + g[None, :] - cost).max(axis=0), 0)
