"""Versions of what decides the numbers of a run."""

from __future__ import annotations

import importlib.metadata
import platform


def versions(*more: str) -> dict[str, str]:
    """Python, featalign, the numerical libraries and `more` distributions, those that are installed."""
    found = {"python": platform.python_version()}
    for package in ("featalign", "torch", "numpy", "scipy", "POT", "scikit-learn", *more):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "unknown"
    return found
