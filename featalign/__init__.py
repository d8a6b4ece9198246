"""featalign: in which basis do separately trained networks agree, and what does averaging in the wrong one cost?

>>> import featalign as fa
>>> result = fa.compare([model_a, model_b], probe=x, evaluate=(x_test, y_test), out="page")
>>> result.to_frame()
>>> fa.load("page")                    # any run folder, of any study

Verbs and packages are imported on first use, so that `import featalign` is instant.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_VERBS = {
    "compare": "featalign.studies.compare.run",
    "diagnose": "featalign.studies.diagnose.run",
    "federate": "featalign.studies.federate.run",
    "load": "featalign.studies.result",
    "match": "featalign.studies.match.run",
}
_PACKAGES = (
    *("data", "clients", "spaces", "toy", "dictionaries", "transport"),
    *("align", "fuse", "federated", "measure", "plots", "report", "studies", "bench", "tracking", "errors"),
)

__all__ = ["__version__", *_VERBS, *_PACKAGES]


def __getattr__(name: str) -> Any:
    if name in _VERBS:
        return getattr(importlib.import_module(_VERBS[name]), name)
    if name in _PACKAGES:
        return importlib.import_module(f"featalign.{name}")
    raise AttributeError(f"module 'featalign' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *_VERBS, *_PACKAGES])
