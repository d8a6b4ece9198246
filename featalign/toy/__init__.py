"""Toy models of superposition with known features: laws, models trained in batches, geometry, real word data.

`fa.toy.compare`, `fa.toy.sweep` and `ToySettings` are the pipelines over these parts; they are imported on first use
because they need the packages above this one.
"""

from __future__ import annotations

import importlib
from typing import Any

from featalign.toy.features import Features, overlap
from featalign.toy.geometry import LEVELS, Geometry, phase
from featalign.toy.models import ToyConfig, ToyModels
from featalign.toy.packing import pack
from featalign.toy.phase import PhaseDiagram, phase_diagram
from featalign.toy.training import Schedule, cached, initial, load, save, train
from featalign.toy.words import Words, word_presence

_PIPELINES = ("compare", "ToySettings", "sweep", "explained_curve", "capacity_curve", "words_curve")

__all__ = [
    "LEVELS",
    "Features",
    "Geometry",
    "PhaseDiagram",
    "Schedule",
    "ToyConfig",
    "ToyModels",
    "Words",
    "cached",
    "initial",
    "load",
    "overlap",
    "pack",
    "phase",
    "phase_diagram",
    "save",
    "train",
    "word_presence",
]


def __getattr__(name: str) -> Any:
    if name in _PIPELINES:
        return getattr(importlib.import_module("featalign.toy_fusion"), name)
    raise AttributeError(f"module 'featalign.toy' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *_PIPELINES])
