"""Wasserstein barycentres: the mean of several layers in the geometry of transport."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from featalign.errors import TransportError
from featalign.transport.checks import as_cost, as_masses, equal_totals, positive
from featalign.transport.plan import Plan
from featalign.transport.problem import Problem
from featalign.transport.solvers.exact import exact


@dataclass(frozen=True)
class Barycentre:
    """Points `[m, d]` (None when the support is given), masses `[m]`, the plans to them and the weighted mean cost."""

    points: np.ndarray | None
    masses: np.ndarray
    plans: tuple[Plan, ...]
    value: float
    iterations: int


def free_barycentre(
    points: Sequence[Any],
    size: int | None = None,
    masses: Sequence[Any] | None = None,
    weights: Any = None,
    max_iterations: int = 100,
    tolerance: float = 1e-9,
    seed: int = 0,
) -> Barycentre:
    """Barycentre of point clouds `[n_k, d]` with `size` free points of equal mass, squared Euclidean cost.

    Alternates exact plans and means (Cuturi and Doucet 2014, algorithm 2); the value never rises. Starts from points
    of all clouds drawn with `seed`, or from the first cloud when `size` is its own.

    Raises `TransportError` on clouds of unequal dimensions, `NotFinite` on NaN.
    """
    clouds = [as_cost(cloud) for cloud in points]
    if not clouds or len({cloud.shape[1] for cloud in clouds}) != 1:
        raise TransportError(f"point clouds of shapes {[cloud.shape for cloud in clouds]} do not share their dimension")
    size = len(clouds[0]) if size is None else int(positive(size, "size"))
    mass = [
        as_masses(None if masses is None else masses[k], len(cloud), f"of cloud {k}") for k, cloud in enumerate(clouds)
    ]
    mass = [part / part.sum() for part in mass]
    lam = as_masses(weights, len(clouds), "weights")
    lam = lam / lam.sum()
    if size == len(clouds[0]):
        centre = clouds[0].copy()
    else:
        rng, pool = np.random.default_rng(seed), np.concatenate(clouds)
        centre = pool[rng.choice(len(pool), size, replace=size > len(pool))]
    target, value, iteration = np.full(size, 1.0 / size), np.inf, 0
    while iteration < max_iterations:
        iteration += 1
        plans = [exact(Problem(_squared(cloud, centre), part, target)) for cloud, part in zip(clouds, mass)]
        now = float(lam @ [plan.value for plan in plans])
        if now >= value * (1 - tolerance):
            break
        value = now
        centre = sum(w * (plan.coupling.T @ cloud) * size for w, plan, cloud in zip(lam, plans, clouds))
    return Barycentre(centre, target, tuple(plans), float(lam @ [plan.value for plan in plans]), iteration)


def fixed_barycentre(masses: Any, cost: Any, weights: Any = None, eps: float | None = None) -> Barycentre:
    """Barycentre of masses `[K, n]` that share one support with ground cost `[n, n]`.

    `eps=None` solves the linear program (up to about 200 points); otherwise entropic in the log domain, `eps` as a
    share of the cost's range (Benamou et al. 2015). The value is that of exact plans to the barycentre.

    Raises `TransportError` on masses that do not sum alike.
    """
    import ot

    cost, masses = as_cost(cost), as_cost(masses)
    if masses.shape[1] != cost.shape[0] or cost.shape[0] != cost.shape[1]:
        raise TransportError(f"masses {masses.shape} and ground cost {cost.shape}; [K, n] and [n, n] are needed")
    rows = [as_masses(row, len(cost), "of a row") for row in masses]
    for row in rows:
        equal_totals(row, rows[0])
    histograms = np.stack([row / row.sum() for row in rows], axis=1)
    lam = as_masses(weights, len(rows), "weights")
    lam = lam / lam.sum()
    scale = float(np.ptp(cost)) or 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if eps is None:
            centre = ot.lp.barycenter(histograms, cost / scale, lam, solver="highs")
        else:
            options = {"method": "sinkhorn_log", "numItermax": 5000, "stopThr": 1e-8}
            centre = ot.bregman.barycenter(histograms, cost / scale, positive(eps, "eps"), lam, **options)
    centre = np.maximum(np.asarray(centre), 0)
    if not np.isfinite(centre).all() or centre.sum() <= 0:
        raise TransportError("the entropic barycentre underflowed; raise eps, or use eps=None for the linear program")
    centre = centre / centre.sum()
    plans = tuple(exact(Problem(cost, histograms[:, k], centre)) for k in range(len(rows)))
    return Barycentre(None, centre, plans, float(lam @ [plan.value for plan in plans]), 0)


def _squared(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum((x**2).sum(1)[:, None] + (y**2).sum(1) - 2 * x @ y.T, 0)
