"""featalign: in which basis do separately trained networks agree, and what does averaging in the wrong one cost?

>>> import featalign as fa
>>> result = fa.compare([model_a, model_b], probe=x, evaluate=(x_test, y_test))
>>> result.to_frame()

Subpackages are imported on first use, so that `import featalign` is instant. The pipelines are imported here because a
submodule and a function share a name: their modules must stay free of heavy imports at the top.
"""

from __future__ import annotations

import importlib
from typing import Any

from featalign.compare import compare
from featalign.diagnose import diagnose

__version__ = "0.1.0"

_PACKAGES = (
    *("data", "clients", "spaces", "toy", "dictionaries", "transport"),
    *("align", "fuse", "federated", "measure", "plots", "report", "bench", "errors"),
)

__all__ = ["__version__", "compare", "diagnose", *_PACKAGES]


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return importlib.import_module(f"featalign.{name}")
    raise AttributeError(f"module 'featalign' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *_PACKAGES])
