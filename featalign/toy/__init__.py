"""Toy models of superposition with known features: laws, models trained in batches, geometry, real word data.

A toy model is one more model family (`ToyConfig`, registered as "toy"; `ToyModel`, a module), so that every fusion
method takes it: `fa.studies.toy.compare` fuses clients of them against the truth.
"""

from __future__ import annotations

from featalign.toy.features import Features, overlap
from featalign.toy.geometry import LEVELS, Geometry, phase
from featalign.toy.models import ToyConfig, ToyModel, ToyModels, initial
from featalign.toy.phase import PhaseDiagram, phase_diagram
from featalign.toy.task import Reconstruction
from featalign.toy.training import Schedule, cached, load, save, train
from featalign.toy.words import Words, word_presence

__all__ = [
    "LEVELS",
    "Features",
    "Geometry",
    "PhaseDiagram",
    "Reconstruction",
    "Schedule",
    "ToyConfig",
    "ToyModel",
    "ToyModels",
    "Words",
    "cached",
    "initial",
    "load",
    "overlap",
    "phase",
    "phase_diagram",
    "save",
    "train",
    "word_presence",
]
