"""Neuron-basis matching: OTFusion by activations and by weights (Singh and Jaggi 2020), git re-basin's weights."""

from __future__ import annotations

import torch

from featalign.align.maps import SpaceMap
from featalign.align.matchers.registry import matcher
from featalign.align.pair import Pair
from featalign.errors import BadOption
from featalign.transport import solve

COSTS = ("distance", "correlation")
MAPS = {"corrected": SpaceMap.from_plan, "published": SpaceMap.published}


@matcher("ot-acts")
def ot_acts(pair: Pair, *, cost: str = "distance", maps: str = "corrected") -> SpaceMap:
    """OTFusion: units matched by their pre-activations on the probe.

    `cost`: Euclidean "distance" (the paper's) or one minus "correlation". Exact transport with uniform masses: an
    assignment for equal widths, a soft map for unequal ones. `maps`: "corrected", or "published" as in the paper's
    code, which differs where widths do.
    """
    if cost not in COSTS:
        raise BadOption(f"cost '{cost}' of 'ot-acts'; choices: {', '.join(COSTS)}")
    if maps not in MAPS:
        raise BadOption(f"maps '{maps}' of 'ot-acts'; choices: {', '.join(MAPS)}")
    moments = pair.moments
    ground = moments.squared_distances.sqrt() if cost == "distance" else 1 - moments.correlation
    return MAPS[maps](solve(ground, method="exact"))


@matcher("ot-wts", paired=False)
def ot_wts(pair: Pair) -> SpaceMap:
    """OTFusion: units matched by the distance of their incoming weights, layer by layer."""
    mine, theirs = pair.incoming
    return SpaceMap.from_plan(solve(torch.cdist(mine, theirs), method="exact"))


@matcher("weight-matching", default=False, paired=False)
def weight_matching(pair: Pair) -> SpaceMap:
    """Git re-basin: all spaces matched by coordinate ascent on weights, without data."""
    return pair.clients.weight_alignment.maps[pair.name]
