"""Solvers, one file each: functions of a `Problem`, filed by name in `SOLVERS`."""

from featalign.transport.solvers.auto import auto
from featalign.transport.solvers.exact import exact
from featalign.transport.solvers.gromov import fused_gromov, gromov
from featalign.transport.solvers.partial import MassCurve, mass_curve, null_threshold, partial
from featalign.transport.solvers.registry import SOLVERS, run, solver
from featalign.transport.solvers.sinkhorn import entropic
from featalign.transport.solvers.sparse import sparse
from featalign.transport.solvers.unbalanced import unbalanced

__all__ = [
    "SOLVERS",
    "MassCurve",
    "auto",
    "entropic",
    "exact",
    "fused_gromov",
    "gromov",
    "mass_curve",
    "null_threshold",
    "partial",
    "run",
    "solver",
    "sparse",
    "unbalanced",
]
