"""Optimal transport with certificates. Knows nothing of networks: costs and masses in, plans out."""

from featalign.transport.avot import AvotWeights, Feasibility, feasibility
from featalign.transport.barycentre import Barycentre, fixed_barycentre, free_barycentre
from featalign.transport.costs import COSTS, GroundCost, SemanticMoments, ground_cost
from featalign.transport.exact import exact
from featalign.transport.gromov import gromov
from featalign.transport.partial import MassCurve, mass_curve, null_threshold, partial
from featalign.transport.plan import Plan
from featalign.transport.sinkhorn import Entropic, entropic, hilbert_rate, round_to_marginals, sinkhorn
from featalign.transport.solve import SOLVERS, solve
from featalign.transport.sparse import sparse
from featalign.transport.unbalanced import unbalanced
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
    "sparse",
    "unbalanced",
    "universe",
]
