"""The toy study: clients whose features are known, fused by every method that takes them, scored against the truth.

>>> result = fa.studies.toy.compare(n=24, m=8, density=0.04, seeds=5)
>>> result.to_frame()
>>> fa.studies.toy.sweep(quick=True).agreement        # how often the regime's recommendation is the best method
>>> fa.studies.toy.CURVES["explained"]().to_frame()
"""

from featalign.studies.toy.config import ToySettings
from featalign.studies.toy.curves import CURVES, capacity_curve, explained_curve, words_curve
from featalign.studies.toy.result import ToyResult
from featalign.studies.toy.run import compare
from featalign.studies.toy.sweep import Sweep, default_settings, sweep

__all__ = [
    "CURVES",
    "Sweep",
    "ToyResult",
    "ToySettings",
    "capacity_curve",
    "compare",
    "default_settings",
    "explained_curve",
    "sweep",
    "words_curve",
]
