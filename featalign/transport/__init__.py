"""Optimal transport with certificates. Knows nothing of networks: costs and masses in, plans out."""

from featalign.transport.costs import COSTS, GroundCost, SemanticMoments, ground_cost
from featalign.transport.exact import exact
from featalign.transport.partial import null_threshold, partial
from featalign.transport.plan import Plan
from featalign.transport.solve import SOLVERS, solve
from featalign.transport.sparse import sparse

__all__ = [
    "COSTS",
    "SOLVERS",
    "GroundCost",
    "Plan",
    "SemanticMoments",
    "exact",
    "ground_cost",
    "null_threshold",
    "partial",
    "solve",
    "sparse",
]
