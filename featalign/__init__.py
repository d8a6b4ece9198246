"""featalign: in which basis do separately trained networks agree, and what does averaging in the wrong one cost?

>>> import featalign as fa
>>> result = fa.compare([model_a, model_b], probe=x, evaluate=(x_test, y_test))
>>> result.to_frame()

Subpackages and pipelines are imported on first use, so that `import featalign` is instant.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_PACKAGES = (
    *("data", "clients", "spaces", "toy", "dictionaries", "transport"),
    *("align", "fuse", "measure", "plots", "report", "bench"),
)
_PIPELINES = {"compare": "featalign.compare"}

__all__ = ["__version__", *_PACKAGES, *_PIPELINES]


def __getattr__(name: str) -> Any:
    if name in _PIPELINES:
        value = getattr(importlib.import_module(_PIPELINES[name]), name)
        globals()[name] = value  # importing the module bound its own name; the function is what people call
        return value
    if name in _PACKAGES or name == "errors":
        return importlib.import_module(f"featalign.{name}")
    raise AttributeError(f"module 'featalign' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *_PACKAGES, *_PIPELINES])
