"""Two clients in one space: what may be known of the pair, the matchers that choose a map, and the regime.

>>> fa.align.MATCHERS.names()             # a new matcher is one decorated function in one file
>>> alignment = fa.align.align(clients, "procrustes", center=True)
"""

from featalign.align.activations import Activations
from featalign.align.feature import FeatureMatch, match_features, project, re_express
from featalign.align.maps import Alignment, SpaceMap
from featalign.align.matchers import MATCHERS, Matcher, align, matcher
from featalign.align.memory import Memory
from featalign.align.packing import pack
from featalign.align.pair import Clients, Pair
from featalign.align.regime import Regime, regime

__all__ = [
    "MATCHERS",
    "Activations",
    "Alignment",
    "Clients",
    "FeatureMatch",
    "Matcher",
    "Memory",
    "Pair",
    "Regime",
    "SpaceMap",
    "align",
    "match_features",
    "matcher",
    "pack",
    "project",
    "re_express",
    "regime",
]
