"""The network simplex behind every exact problem with general masses, made safe for forbidden and for very dear pairs.

The simplex prices pairs relative to the largest cost it is given. A cost of 1e12 that stands for "never" would push
the real costs below its tolerance; so costs are clipped where it cannot matter. An optimal plan uses no pair above
`never_paid` of any plan that is known, and what the clipped problem says is proved on the full cost by its potentials.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from featalign.errors import InfeasibleError, TransportError
from featalign.transport.costs import never_paid
from featalign.transport.duals import c_transform

LOUD = 1e-10  # relative gap from which a plan is computed again with the dearest pairs clipped
ROUNDS = 4
UNDELIVERED = 1e-9  # share of the mass that may fall on forbidden pairs by rounding

Start = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Solution:
    """Coupling `[n, m]`, its value, and potentials `f [n]`, `g [m]` that are feasible on the full cost."""

    coupling: np.ndarray
    value: float
    f: np.ndarray
    g: np.ndarray


def simplex(
    cost: np.ndarray, a: np.ndarray, b: np.ndarray, max_iterations: int = 10_000_000, start: Start | None = None
) -> Solution:
    """Optimum of `cost [n, m]` (plus infinity: forbidden) for masses of one total, by POT's network simplex.

    Raises `InfeasibleError` when mass has no allowed pair to go to, `TransportError` when the optimum is not reached
    (POT itself warns and returns a zero plan).
    """
    masked = bool(np.isinf(cost.max()))
    largest = float(np.abs(cost).max()) if not masked else np.inf
    best: Solution | None = None
    if masked:
        require_allowed(cost, a, b)
        live = cost[np.ix_(a > 0, b > 0)]
        finite = live[np.isfinite(live)]
        largest = never_paid(float(finite.min()), float(finite.max()), cost.shape)
    level = largest
    for _ in range(ROUNDS):
        clipped = cost if level == largest and not masked else np.minimum(cost, level)
        coupling, g = _emd(clipped, a, b, max_iterations, start)
        if masked:
            coupling = within(coupling, np.isfinite(cost), a, b)
        used = coupling > _noise(coupling, a, b)
        if level < largest:
            coupling = np.where(used | (cost < level), coupling, 0.0)
        now = _solution(cost, coupling, g, masked)
        gap, paid = now.value - float(now.f @ a + now.g @ b), float((coupling * np.abs(_known(cost, masked))).sum())
        if best is None or gap < 0.5 * (best.value - float(best.f @ a + best.g @ b)):
            best = now
        tighter = never_paid(float(cost.min()), float(cost[used].max()), cost.shape)
        if gap <= LOUD * paid or tighter >= 0.5 * level:
            break
        level = tighter
    return best  # type: ignore[return-value]


def require_allowed(cost: np.ndarray, a: np.ndarray, b: np.ndarray) -> None:
    """Raise `InfeasibleError` when a unit with mass has no allowed partner with mass."""
    allowed = np.isfinite(cost)
    for side, mass, reach in (("source", a, allowed[:, b > 0].any(axis=1)), ("target", b, allowed[a > 0].any(axis=0))):
        alone = np.flatnonzero((mass > 0) & ~reach)
        if len(alone):
            raise InfeasibleError(
                f"the mask leaves {side} {int(alone[0])} with mass and without an allowed partner ({len(alone)} such "
                f"{side}s); allow a pair, set its mass to zero, or use method='partial'"
            )


def within(coupling: np.ndarray, allowed: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The coupling `[n, m]` without the rounding it holds off the mask; `InfeasibleError` when it holds more."""
    astray = np.where(allowed, 0.0, coupling)
    lost = float(astray.sum())
    if lost > UNDELIVERED * float(a.sum()):
        i, j = np.unravel_index(int(astray.argmax()), astray.shape)
        raise InfeasibleError(
            f"no plan keeps to the mask: at least {lost:.6g} of the mass {a.sum():.6g} finds no allowed pair (seen "
            f"between source {i} and target {j}); allow more pairs, or use method='partial'"
        )
    return np.where(allowed, coupling, 0.0)


def _noise(coupling: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Mass on a pair that rounding explains, `[n, m]`."""
    rounding = 16 * np.finfo(np.float64).eps * float(a.sum())
    return np.minimum(rounding, 1e-6 * np.minimum(a[:, None], b))


def _known(cost: np.ndarray, masked: bool) -> np.ndarray:
    return np.where(np.isinf(cost), 0.0, cost) if masked else cost


def _solution(cost: np.ndarray, coupling: np.ndarray, g: np.ndarray, masked: bool) -> Solution:
    return Solution(coupling, float((coupling * _known(cost, masked)).sum()), c_transform(cost, g), g)


def _emd(
    cost: np.ndarray, a: np.ndarray, b: np.ndarray, max_iterations: int, start: Start | None
) -> tuple[np.ndarray, np.ndarray]:
    """POT's network simplex on the support of both masses: plan `[n, m]` and target potentials `[m]`."""
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
