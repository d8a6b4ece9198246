"""Which tensor axes share a basis, how activations are read there, and how maps are applied to weights."""

from featalign.spaces.apply import moved, rebuilt
from featalign.spaces.capture import collect, stream
from featalign.spaces.graph import Axis, Layer, Site, Space, SpaceGraph, Symmetry
from featalign.spaces.moments import CrossMoments

__all__ = [
    "Axis",
    "CrossMoments",
    "Layer",
    "Site",
    "Space",
    "SpaceGraph",
    "Symmetry",
    "collect",
    "moved",
    "rebuilt",
    "stream",
]
