"""Optimal transport with certificates. Knows nothing of networks: costs and masses in, plans out.

A `Problem` is a ground cost between two sets of units with masses, on the pairs that a mask allows; its properties
(`is_assignment`, `is_balanced`, `is_uniform`, `is_masked`) decide the fast path. `solve` is the front door: it finds a
solver by name in `SOLVERS` (one file each, options in the signature) and returns a `Plan`, which carries its value and
a lower bound on what any plan can reach, so that `gap` says how far from optimal it may be.

>>> import numpy as np
>>> from featalign import transport
>>> cost = np.array([[1.0, 4.0], [2.0, 3.0]])
>>> plan = transport.solve(cost)  # square, uniform masses: an assignment
>>> plan.value, plan.gap, plan.pairs.tolist()
(2.0, 0.0, [[0, 0], [1, 1]])
>>> transport.solve(cost, [0.25, 0.75], mask=[[0, 1], [1, 1]]).dense().tolist()  # the pair (0, 0) is forbidden
[[0.0, 0.25], [0.5, 0.25]]
"""

from featalign.transport.avot import AvotWeights
from featalign.transport.barycentre import Barycentre, fixed_barycentre, free_barycentre
from featalign.transport.costs import COSTS, GroundCost, SemanticMoments, ground_cost
from featalign.transport.plan import Plan
from featalign.transport.presence import Feasibility, feasibility
from featalign.transport.problem import Problem
from featalign.transport.scaling import Entropic, hilbert_rate, round_to_marginals, sinkhorn
from featalign.transport.solve import solve
from featalign.transport.solvers import (
    SOLVERS,
    MassCurve,
    entropic,
    exact,
    gromov,
    mass_curve,
    null_threshold,
    partial,
    solver,
    sparse,
    unbalanced,
)
from featalign.transport.universe import Universe, universe

__all__ = [
    "COSTS",
    "SOLVERS",
    "AvotWeights",
    "Barycentre",
    "Entropic",
    "Feasibility",
    "GroundCost",
    "MassCurve",
    "Plan",
    "Problem",
    "SemanticMoments",
    "Universe",
    "entropic",
    "exact",
    "feasibility",
    "fixed_barycentre",
    "free_barycentre",
    "gromov",
    "ground_cost",
    "hilbert_rate",
    "mass_curve",
    "null_threshold",
    "partial",
    "round_to_marginals",
    "sinkhorn",
    "solve",
    "solver",
    "sparse",
    "unbalanced",
    "universe",
]
