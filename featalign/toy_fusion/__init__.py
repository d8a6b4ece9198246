"""The toy pipeline: clients whose features are known, fused in every basis, scored against the truth.

Reached as `fa.toy.compare`, `fa.toy.sweep` and the curves of `fa.toy`.
"""

from featalign.toy_fusion.compare import compare
from featalign.toy_fusion.curves import CURVES, capacity_curve, explained_curve, words_curve
from featalign.toy_fusion.methods import METHODS, ToyProblem
from featalign.toy_fusion.result import ToyResult
from featalign.toy_fusion.sweep import Sweep, default_settings, sweep
from featalign.toy_fusion.world import ToySettings

__all__ = [
    "CURVES",
    "METHODS",
    "Sweep",
    "ToyProblem",
    "ToyResult",
    "ToySettings",
    "capacity_curve",
    "compare",
    "default_settings",
    "explained_curve",
    "sweep",
    "words_curve",
]
