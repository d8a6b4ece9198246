"""The one fusion rule, the closed-form refit, and the registry of named methods.

>>> problem = fa.fuse.FusionProblem(clients, graphs, probe, refit_inputs, mixing=(0.5, 0.5), reference=1)
>>> result = fa.fuse.fuse(problem, "ot-acts", with_refit=True)
>>> result.module                      # the fused network
>>> fa.fuse.METHODS.names()            # a new method is one decorated function in one file
"""

from featalign.fuse import rebasin  # noqa: F401 - registers its method
from featalign.fuse.methods import METHODS, Proposal, fusion_method
from featalign.fuse.problem import FusionProblem
from featalign.fuse.result import FusionResult, fuse, ledger
from featalign.fuse.zip import zip_features, zip_neurons

__all__ = [
    "METHODS",
    "FusionProblem",
    "FusionResult",
    "Proposal",
    "fuse",
    "fusion_method",
    "ledger",
    "zip_features",
    "zip_neurons",
]
