"""Soft alignment by entropic transport (Imfeld et al. 2024, transformer fusion)."""

from __future__ import annotations

import torch

from featalign.align.linear import rotation
from featalign.align.maps import ROTATIONS, SpaceMap
from featalign.align.matchers.registry import matcher
from featalign.align.pair import Pair
from featalign.transport import solve


@matcher("sinkhorn", gauge=False, default=False, exact=False)
def sinkhorn(pair: Pair, *, eps: float = 0.05, project: bool = False) -> SpaceMap:
    """Soft maps of every space by entropic transport on activations; nothing is kept exact unless projected.

    Args:
        eps: relative to the mean cost.
        project: give every space the nearest map of its own symmetry, the polar factor of the plan in linear spaces and
            streams, the best assignment under it elsewhere. As published, the pair is `diag(1/b) T^T`, `diag(1/a) T` of
            the Sinkhorn plan `T`: every unit becomes a mean of many and is read back as a mean of those means, which
            shrinks what sets it apart, once for every space that it passes.

    Source: Imfeld et al. 2024, "Transformer fusion with optimal transport", section 4.
    """
    moments = pair.stream_moments if pair.source.whole_sites else pair.moments
    plan = solve(moments.squared_distances.sqrt(), method="sinkhorn", eps=eps)
    if not project:
        return SpaceMap.from_plan(plan)
    coupling = torch.from_numpy(plan.dense()).double()
    if pair.target.symmetry in ROTATIONS and len(coupling) == coupling.shape[1]:
        return rotation(coupling.T)
    return SpaceMap.from_plan(solve((coupling.amax() - coupling).contiguous(), method="exact"))
