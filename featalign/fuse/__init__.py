"""The one fusion rule, the closed-form refit, and the registry of named methods.

>>> problem = fa.fuse.FusionProblem(fa.clients.Cohort.of(models, probe=x, evaluate=(x_test, y_test)))
>>> result = fa.fuse.solve(problem, "ot-acts", refit=True)
>>> result.module                      # the fused network
>>> fa.fuse.METHODS.names()            # a new method is one decorated function in one file
"""

from featalign.fuse.engine import propose, solve
from featalign.fuse.ledger import ledger
from featalign.fuse.methods import METHODS, Method, Proposal, available, fusion_method
from featalign.fuse.problem import FusionProblem, mixing_weights
from featalign.fuse.result import FusionResult

__all__ = [
    "METHODS",
    "FusionProblem",
    "FusionResult",
    "Method",
    "Proposal",
    "available",
    "fusion_method",
    "ledger",
    "mixing_weights",
    "propose",
    "solve",
]
