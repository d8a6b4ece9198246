"""Soft alignment by entropic transport (Imfeld et al. 2024, transformer fusion)."""

from __future__ import annotations

from featalign.align.maps import SpaceMap
from featalign.align.matchers.registry import matcher
from featalign.align.pair import Pair
from featalign.transport import solve


@matcher("sinkhorn", gauge=False, default=False, exact=False)
def sinkhorn(pair: Pair, *, eps: float = 0.05) -> SpaceMap:
    """Soft maps of every space by entropic transport on activations; nothing is kept exact.

    `eps` is relative to the mean cost. The pair is `diag(1/b) T^T`, `diag(1/a) T` of the Sinkhorn plan `T`.
    """
    moments = pair.stream_moments if pair.source.whole_sites else pair.moments
    return SpaceMap.from_plan(solve(moments.squared_distances.sqrt(), method="sinkhorn", eps=eps))
