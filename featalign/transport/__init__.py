"""Optimal transport with certificates. Knows nothing of networks: costs and masses in, plans out."""

from featalign.transport.exact import exact
from featalign.transport.partial import null_threshold, partial
from featalign.transport.plan import Plan
from featalign.transport.solve import SOLVERS, solve

__all__ = ["SOLVERS", "Plan", "exact", "null_threshold", "partial", "solve"]
