"""Matchers: each chooses one space map from a pair of clients; a new one is one decorated function in one file.

>>> from featalign.align import matcher, SpaceMap
>>> @matcher("mine")
... def mine(pair, *, power: float = 1.0) -> SpaceMap:
...     \"\"\"One line that tables show.\"\"\"
"""

from featalign.align.matchers import cca, components, features, identity, neurons, rotations, soft  # noqa: F401 - they register
from featalign.align.matchers.registry import MATCHERS, Matcher, align, matcher

__all__ = ["MATCHERS", "Matcher", "align", "matcher"]
