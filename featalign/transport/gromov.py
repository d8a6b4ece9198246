"""Gromov transport: units are matched by how they relate to units of their own client, no shared probe set needed."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch

from featalign.errors import BadOption, TransportError
from featalign.transport.duals import cut_bound
from featalign.transport.exact import exact
from featalign.transport.plan import Plan
from featalign.transport.problem import as_cost, balanced_masses, is_uniform, positive
from featalign.transport.sinkhorn import round_to_marginals


def gromov(
    structure_a: Any,
    structure_b: Any,
    a: Any = None,
    b: Any = None,
    cost: Any = None,
    alpha: float = 0.5,
    eps: float | None = None,
    max_iterations: int = 1000,
    tolerance: float = 1e-9,
) -> Plan:
    """Plan that keeps `structure_a [n, n]` close to `structure_b [m, m]` (Gram, distance or correlation matrices).

    Minimises `sum (A_ij - B_kl)^2 T_ik T_jl`, or with a ground cost `cost [n, m]` the fused objective
    `(1 - alpha) <cost, T> + alpha (...)` (Vayer et al. 2020). `eps`, a share of the largest squared difference, asks
    for the entropic solver (Peyre et al. 2016), which finds better pairs of a few hundred atoms; its plan is rounded.
    Starts from the product of the masses and from the plan of the lower bound; the better end is returned.

    The problem is not convex: `lower_bound` is Memoli's third bound (2011), exact transport between the distributions
    of rows, for uniform masses, and without the structures' share otherwise.

    Raises `TransportError` on structures that are not square, `BadOption` on alpha outside [0, 1].
    """
    ca, cb = _square(structure_a, "structure_a"), _square(structure_b, "structure_b")
    n, m = len(ca), len(cb)
    if not 0 <= alpha <= 1:
        raise BadOption(f"alpha={alpha!r}: give the share of the structures, from 0 to 1")
    linear = np.zeros((n, m)) if cost is None else as_cost(cost)
    share = 1.0 if cost is None else alpha
    if linear.shape != (n, m):
        raise TransportError(f"cost has shape {linear.shape} and the structures ask for {(n, m)}")
    a, b = balanced_masses(a, b, (n, m))
    rows = _row_distances(ca, cb) if is_uniform(a) and is_uniform(b) else np.zeros((n, m))
    below = exact((1 - share) * linear + share * rows, a, b)
    ends = [
        _solve(ca, cb, a, b, linear, share, eps, start, max_iterations, tolerance)
        for start in (np.outer(a, b) / b.sum(), below.dense())
    ]
    value, coupling, iterations = min(ends, key=lambda end: end[0])
    name = ("fused " if cost is not None else "") + ("entropic " if eps is not None else "") + "Gromov"
    return Plan(
        coupling,
        a,
        b,
        value,
        cut_bound(below.lower_bound, value, float(np.abs(ca).max() ** 2 * a.sum())),
        "gromov",
        f"{name}, best of two starts",
        iterations,
    )


def _square(structure: Any, name: str) -> np.ndarray:
    matrix = as_cost(structure)
    if matrix.shape[0] != matrix.shape[1]:
        raise TransportError(f"{name} has shape {matrix.shape}; a square matrix is needed")
    return matrix


def gromov_value(ca: np.ndarray, cb: np.ndarray, coupling: np.ndarray) -> float:
    """`sum (A_ij - B_kl)^2 T_ik T_jl` in `O(n^2 m + n m^2)`."""
    rows, columns = coupling.sum(1), coupling.sum(0)
    return max(
        0.0, float(rows @ ca**2 @ rows + columns @ cb**2 @ columns - 2 * np.sum((ca @ coupling @ cb.T) * coupling))
    )


def _solve(
    ca: np.ndarray,
    cb: np.ndarray,
    a: np.ndarray,
    b: np.ndarray,
    linear: np.ndarray,
    share: float,
    eps: float | None,
    start: np.ndarray,
    max_iterations: int,
    tolerance: float,
) -> tuple[float, np.ndarray, int]:
    from ot import gromov as pot

    total = a.sum()
    options: dict[str, Any] = {"G0": start / total, "log": True, "max_iter": max_iterations, "loss_fun": "square_loss"}
    arguments: tuple[Any, ...] = (ca, cb, a / total, b / total)
    fused = share < 1
    if fused:
        arguments, options["alpha"] = (linear, *arguments), share
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if eps is None:
            solver = pot.fused_gromov_wasserstein if fused else pot.gromov_wasserstein
            coupling, record = solver(*arguments, tol_rel=tolerance, tol_abs=tolerance, **options)
        else:
            largest = max(ca.max() - cb.min(), cb.max() - ca.min()) ** 2
            options["epsilon"] = positive(eps, "eps") * (float(largest) or 1.0)
            solver = pot.entropic_fused_gromov_wasserstein if fused else pot.entropic_gromov_wasserstein
            coupling, record = solver(*arguments, tol=tolerance, **options)
    coupling = np.asarray(coupling) * total
    if not np.isfinite(coupling).all() or abs(coupling.sum() - total) > 0.1 * total:
        raise TransportError("entropic Gromov underflowed; raise eps, or leave it out for the exact solver")
    coupling = round_to_marginals(*(torch.from_numpy(part) for part in (coupling, a, b))).numpy()
    value = (1 - share) * float((linear * coupling).sum()) + share * gromov_value(ca, cb, coupling)
    return value, coupling, len(record.get("loss", record.get("err", [])))


def _row_distances(ca: np.ndarray, cb: np.ndarray) -> np.ndarray:
    """Squared Wasserstein distances `[n, m]` between the rows' value distributions, each value of equal mass."""
    n, m = len(ca), len(cb)
    cuts = np.unique(np.concatenate([np.arange(n + 1) * m, np.arange(m + 1) * n]))  # quantiles, in units of 1 / (n m)
    widths, middle = np.diff(cuts) / (n * m), (cuts[1:] + cuts[:-1]) / 2
    x = np.sort(ca, axis=1)[:, (middle // m).astype(int)] * np.sqrt(widths)
    y = np.sort(cb, axis=1)[:, (middle // n).astype(int)] * np.sqrt(widths)
    return np.maximum((x**2).sum(1)[:, None] + (y**2).sum(1) - 2 * x @ y.T, 0)
