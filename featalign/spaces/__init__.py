"""Which tensor axes share a basis, how activations are read there, and how maps are applied to weights."""

from featalign.spaces.apply import moved, rebuilt
from featalign.spaces.canonical import Canonical, canonical
from featalign.spaces.capture import collect, stream
from featalign.spaces.check import check
from featalign.spaces.graph import Axis, Layer, Site, Space, SpaceGraph, Symmetry, weakest
from featalign.spaces.moments import CrossMoments
from featalign.spaces.naming import check_hook, hook_name_of, provenance, resolve_site, same_place, sites
from featalign.spaces.nonlinear import apply_nonlinearity
from featalign.spaces.pruning import prune
from featalign.spaces.splice import Splice, splice
from featalign.spaces.store import ActivationStore
from featalign.spaces.tracing import trace

__all__ = [
    "ActivationStore",
    "Axis",
    "Canonical",
    "CrossMoments",
    "Layer",
    "Site",
    "Space",
    "SpaceGraph",
    "Splice",
    "Symmetry",
    "apply_nonlinearity",
    "canonical",
    "check",
    "check_hook",
    "collect",
    "hook_name_of",
    "moved",
    "provenance",
    "prune",
    "rebuilt",
    "resolve_site",
    "same_place",
    "sites",
    "splice",
    "stream",
    "trace",
    "weakest",
]
