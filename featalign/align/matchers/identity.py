"""Position by position: the client stays where it is."""

from __future__ import annotations

from featalign.align.maps import SpaceMap
from featalign.align.matchers.registry import matcher
from featalign.align.pair import Pair
from featalign.errors import SpaceMismatch


@matcher("vanilla", basis="none", needs=("equal-widths",), gauge=False, paired=False)
def identity(pair: Pair) -> SpaceMap:
    """Average position by position (FedAvg after independent training)."""
    if pair.source.size != pair.target.size:
        raise SpaceMismatch(
            f"space '{pair.name}' has {pair.source.size} and {pair.target.size} units; averaging by position wants "
            "equal widths"
        )
    return SpaceMap.identity(pair.target.size, pair.target.symmetry)
