"""Gromov transport: units are matched by how they relate to units of their own client, no shared probe set needed."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch

from featalign.errors import BadOption, TransportError
from featalign.transport.checks import as_cost, positive
from featalign.transport.duals import cut_bound
from featalign.transport.plan import Plan
from featalign.transport.problem import Problem
from featalign.transport.scaling import round_to_marginals
from featalign.transport.solvers.exact import exact
from featalign.transport.solvers.registry import solver


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

    Minimises `sum (A_ij - B_kl)^2 T_ik T_jl` (Memoli 2011), or with a ground cost `cost [n, m]` the fused objective of
    `solve(cost, method="gromov")`, which has the options and the errors.
    """
    n, m = len(_square(structure_a, "structure_a")), len(_square(structure_b, "structure_b"))
    problem = Problem(np.zeros((n, m)) if cost is None else cost, a, b)
    share = 1.0 if cost is None else alpha
    return fused_gromov(
        problem,
        structure_a=structure_a,
        structure_b=structure_b,
        alpha=share,
        eps=eps,
        max_iterations=max_iterations,
        tolerance=tolerance,
    )


@solver("gromov")
def fused_gromov(
    problem: Problem,
    *,
    structure_a: Any,
    structure_b: Any,
    alpha: float = 0.5,
    eps: float | None = None,
    max_iterations: int = 1000,
    tolerance: float = 1e-9,
) -> Plan:
    """Plan of `(1 - alpha) <C, T> + alpha sum (A_ij - B_kl)^2 T_ik T_jl` (Vayer et al. 2020, equation 6).

    `structure_a [n, n]`, `structure_b [m, m]`. `eps`, a share of the largest squared difference, asks for the entropic
    solver (Peyre, Cuturi and Solomon 2016), which finds better pairs of a few hundred atoms; its plan is rounded.
    Starts from the product of the masses and from the plan of the lower bound; the better end is returned.

    The problem is not convex: `lower_bound` is Memoli's third bound (2011, definition 6.3), exact transport between the
    distributions of rows, for uniform masses, and without the structures' share otherwise.

    Raises `TransportError` on structures that are not square and on a mask, `BadOption` on alpha outside [0, 1].
    """
    ca, cb = _square(structure_a, "structure_a"), _square(structure_b, "structure_b")
    n, m = len(ca), len(cb)
    if not 0 <= alpha <= 1:
        raise BadOption(f"alpha={alpha!r}: give the share of the structures, from 0 to 1")
    if problem.is_masked:
        raise TransportError("Gromov transport takes no mask; forbid pairs by a finite cost, or use method='exact'")
    if problem.shape != (n, m):
        raise TransportError(f"cost has shape {problem.shape} and the structures ask for {(n, m)}")
    linear, (a, b) = problem.matrix, problem.balanced()
    rows = _row_distances(ca, cb) if problem.is_uniform else np.zeros((n, m))
    below = exact(Problem((1 - alpha) * linear + alpha * rows, a, b))
    ends = [
        _solve(ca, cb, a, b, linear, alpha, eps, start, max_iterations, tolerance)
        for start in (np.outer(a, b) / b.sum(), below.dense())
    ]
    if alpha < 1 and eps is None:  # costs of very different sizes lead the descent astray; the start is an end too
        ends.append((_value(ca, cb, linear, alpha, below.dense()), below.dense(), 0))
    value, coupling, iterations = min(ends, key=lambda end: end[0])
    name = ("fused " if alpha < 1 else "") + ("entropic " if eps is not None else "") + "Gromov"
    scale = float(np.abs(ca).max() ** 2 * a.sum()) + float((coupling * np.abs(linear)).sum())
    bound = cut_bound(below.lower_bound, value, scale)
    return Plan(coupling, a, b, value, bound, "gromov", f"{name}, best of two starts", iterations)


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


def _value(ca: np.ndarray, cb: np.ndarray, linear: np.ndarray, share: float, coupling: np.ndarray) -> float:
    return (1 - share) * float((linear * coupling).sum()) + share * gromov_value(ca, cb, coupling)


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
    value = _value(ca, cb, linear, share, coupling)
    return value, coupling, len(record.get("loss", record.get("err", [])))


def _row_distances(ca: np.ndarray, cb: np.ndarray) -> np.ndarray:
    """Squared Wasserstein distances `[n, m]` between the rows' value distributions, each value of equal mass."""
    n, m = len(ca), len(cb)
    cuts = np.unique(np.concatenate([np.arange(n + 1) * m, np.arange(m + 1) * n]))  # quantiles, in units of 1 / (n m)
    widths, middle = np.diff(cuts) / (n * m), (cuts[1:] + cuts[:-1]) / 2
    x = np.sort(ca, axis=1)[:, (middle // m).astype(int)] * np.sqrt(widths)
    y = np.sort(cb, axis=1)[:, (middle // n).astype(int)] * np.sqrt(widths)
    return np.maximum((x**2).sum(1)[:, None] + (y**2).sum(1) - 2 * x @ y.T, 0)
