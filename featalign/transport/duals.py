"""Feasible dual potentials: what turns a plan into a plan with a certificate.

Potentials `(f, g)` with `f_i + g_j <= C_ij` everywhere prove `sum f a + sum g b <= <C, T>` for every plan T (weak
duality). Any `g` becomes feasible by the c-transform `f_i = min_j (C_ij - g_j)`.
"""

from __future__ import annotations

import numpy as np

from featalign.errors import TransportError

NOTICEABLE = 1e-9  # relative to the value
BLOCK = 1 << 22  # entries of the cost handled at once: 32 MB in float64


def c_transform(cost: np.ndarray, g: np.ndarray) -> np.ndarray:
    """`f_i = min_j (C_ij - g_j)`, `[n]`: the largest f that is feasible beside `g [m]`; 0 where no pair is allowed."""
    f = np.empty(cost.shape[0])
    step = max(1, BLOCK // cost.shape[1])
    for start in range(0, cost.shape[0], step):
        f[start : start + step] = (cost[start : start + step] - g).min(axis=1)
    f[np.isinf(f)] = 0.0
    return f


def dual_value(f: np.ndarray, g: np.ndarray, a: np.ndarray, b: np.ndarray, value: float) -> float:
    """Lower bound `f.a + g.b`, cut at the primal `value`, which it can exceed by rounding only.

    Raises `TransportError` when it exceeds it by more: then the potentials are not feasible and nothing was proved.
    """
    return cut_bound(proven(f, g, a, b, value), value, float(np.abs(f) @ a + np.abs(g) @ b))


def proven(f: np.ndarray, g: np.ndarray, a: np.ndarray, b: np.ndarray, value: float) -> float:
    """`f.a + g.b`, where potentials are large lowered by as much as rounding can have raised it.

    Large: rounding could reach `NOTICEABLE` of the bound or of the primal `value`.
    """
    bound, scale = float(f @ a + g @ b), float(np.abs(f) @ a + np.abs(g) @ b)
    rounding = 4 * np.finfo(np.float64).eps * scale
    return bound - rounding if rounding > NOTICEABLE * min(abs(value), abs(bound)) else bound


def cut_bound(bound: float, value: float, scale: float) -> float:
    """`min(bound, value)`, where rounding of terms of size `scale` explains an excess; `TransportError` otherwise."""
    if bound > value + 1e-6 * (scale + abs(value)):
        raise TransportError(
            f"the dual value {bound:.9g} exceeds the primal {value:.9g}: the certificate is invalid; please report it "
            "with the cost and the masses"
        )
    return min(bound, value)


def assignment_duals(
    cost: np.ndarray, rows: np.ndarray, columns: np.ndarray, rounds: int = 200
) -> tuple[np.ndarray, np.ndarray]:
    """Optimal potentials of the optimal assignment `rows -> columns` of `cost [n, m]` with `n <= m`.

    The potentials of columns are shortest-path lengths in the residual graph (Bellman-Ford from zero, rows whose
    matched column fell in the last round only), hence `g <= 0` and `g = 0` on unmatched columns. Cut short after
    `rounds` they are still feasible, only the bound is less tight.
    """
    g = np.zeros(cost.shape[1])
    matched = cost[rows, columns]
    tolerance = 1e-15 * max(float(np.abs(matched).max()), 1e-300)
    active = np.arange(len(rows))
    step = max(1, BLOCK // cost.shape[1])
    for _ in range(rounds):
        lowered = g.copy()
        for start in range(0, len(active), step):
            part = active[start : start + step]
            slack = cost[rows[part]] + (g[columns[part]] - matched[part])[:, None]
            np.minimum(lowered, slack.min(axis=0), out=lowered)
        fell = lowered < g - tolerance
        g = np.where(fell, lowered, g)
        active = np.flatnonzero(fell[columns])
        if len(active) == 0:
            break
    return c_transform(cost, g), g
