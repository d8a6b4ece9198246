"""The verb and the package: `fa.fuse(clients, probe, method)`, the one fusion rule, the refit, the registry of methods.

>>> result = fa.fuse([model_a, model_b], probe=x, method="ot-acts", out="fused")
>>> result.module                      # one network, in the layout that came in; fa.load("fused") reads it back
>>> problem = fa.fuse.FusionProblem(fa.clients.Cohort.of(models, probe=x, evaluate=(x_test, y_test)))
>>> fa.fuse.solve(problem, "ot-acts", refit=True)      # the same, step by step
>>> fa.fuse.METHODS.names()            # a new method is one decorated function in one file
"""

import sys
from types import ModuleType

from featalign.fuse.door import fuse
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
    "fuse",
    "fusion_method",
    "ledger",
    "mixing_weights",
    "propose",
    "solve",
]


class _Verb(ModuleType):
    """A module that can be called: Python looks `__call__` up on the class, so this module is given one of its own."""

    __call__ = staticmethod(fuse)


sys.modules[__name__].__class__ = _Verb
