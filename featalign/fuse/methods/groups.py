"""Units of all clients put into groups: every group is a unit of the fused network, the mean of its members.

What the units have in common is read off their joint moments; a group's mean follows the mixing weights, and each
member is read back as the mean. Spaces inside attention, and those whose samples do not correspond between clients,
are matched to the reference as `ot-acts` does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise

import torch

from featalign.align.heads import attention_layers
from featalign.align.maps import Alignment, SpaceMap
from featalign.align.matchers import align
from featalign.align.pair import Pair
from featalign.fuse.problem import FusionProblem
from featalign.fuse.rule import identity_alignment
from featalign.spaces.graph import Space, Symmetry

MATCHED = "ot-acts"  # what matches the spaces that are not grouped


def seen_spaces(problem: FusionProblem) -> list[Space]:
    """Hidden spaces whose units can be compared sample by sample, those inside attention left out."""
    layers = attention_layers(problem.graph)
    inside = {space.name for layer in layers for space in (layer.heads, *layer.inner)}
    return [s for s in problem.graph.hidden if s.name not in inside and s.pre is not None and s.pre.paired]


def offsets(problem: FusionProblem, space: Space) -> list[int]:
    """Where each client's units begin among those of all, and the end."""
    return torch.tensor([0, *(graph[space.name].size for graph in problem.graphs)]).cumsum(0).tolist()


def pair_of(problem: FusionProblem, source: int, target: int, space: Space) -> Pair:
    """Any two clients in one space."""
    return Pair(replace(problem, reference=target).pair(source), space.name)


def joint_moments(problem: FusionProblem, space: Space) -> tuple[torch.Tensor, torch.Tensor]:
    """Means and covariance of all clients' pre-activations side by side, `[pool]`, `[pool, pool]`, on the probe."""
    edges = offsets(problem, space)
    mean, covariance = torch.zeros(edges[-1]).double(), torch.zeros(edges[-1], edges[-1]).double()
    spans = [slice(low, high) for low, high in pairwise(edges)]
    for k, mine in enumerate(spans):
        for other in range(k, len(spans)):
            moments, theirs = pair_of(problem, k, other, space).moments, spans[other]
            mean[mine], covariance[mine, theirs] = moments.mean_a, moments.covariance_ab
            covariance[theirs, mine] = moments.covariance_ab.T
    return mean, covariance


def correlations(covariance: torch.Tensor) -> torch.Tensor:
    """`[pool, pool]`; zero where a unit is constant."""
    deviation = covariance.diagonal().clamp_min(0).sqrt()
    scale = torch.outer(deviation, deviation)
    return torch.where(scale > 1e-20, covariance / scale.clamp_min(1e-20), torch.zeros_like(scale))


def group_maps(
    problem: FusionProblem, space: Space, labels: torch.Tensor, size: int, weights: torch.Tensor | None = None
) -> tuple[SpaceMap, ...]:
    """Maps of every client for groups `labels [pool]` in `0 .. size - 1`: `O` averages, `R` reads each member back.

    `weights [pool]` of units within their group, beside the mixing weights; alike by default.
    """
    edges = offsets(problem, space)
    weights = torch.ones(edges[-1]).double() if weights is None else weights.double()
    shares = torch.cat([w * weights[a:b] for w, (a, b) in zip(problem.mixing, pairwise(edges))])
    total = torch.zeros(size, dtype=torch.float64).index_add(0, labels, shares).clamp_min(1e-300)
    maps = []
    for low, high in pairwise(edges):
        mine = labels[low:high]
        member = torch.nn.functional.one_hot(mine, size).double()
        maps.append(SpaceMap((member * (weights[low:high] / total[mine])[:, None]).T, member, Symmetry.LINEAR))
    return tuple(maps)


def with_maps(problem: FusionProblem, maps: Mapping[str, tuple[SpaceMap, ...]]) -> tuple[Alignment, ...]:
    """An alignment per client: the given maps, and those of `ot-acts` for all other spaces."""
    found = []
    for k in range(len(problem.cohort)):
        reference = k == problem.reference
        base = identity_alignment(problem) if reference else align(problem.pair(k), MATCHED)
        found.append(replace(base, maps={**base.maps, **{name: each[k] for name, each in maps.items()}}))
    return tuple(found)
