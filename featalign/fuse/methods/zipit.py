"""ZipIt: units of all clients, within and across, merged pair by pair by correlation until the width is reached."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn

from featalign.align.heads import attention_layers
from featalign.align.maps import SpaceMap
from featalign.errors import BadOption
from featalign.fuse.methods.groups import correlations, group_maps, joint_moments, offsets, seen_spaces, with_maps
from featalign.fuse.methods.registry import Proposal, fusion_method
from featalign.fuse.problem import FusionProblem
from featalign.spaces.graph import Space, Symmetry


@fusion_method("zipit", basis="neuron", follows_mixing=True, default=False)
def zipit(problem: FusionProblem, *, partial: float = 1.0, repeat: float = 0.3, within: float = 0.125) -> Proposal:
    """ZipIt: the most correlated units of the union, across and within clients, are averaged in pairs.

    Args:
        partial: share of the hidden spaces, from the input, that are zipped. Beyond it the clients' layers stay apart,
            side by side in a wider network, and the output is the mean of their heads (the paper's partial zip with
            heads averaged; it keeps one head per task). Not for norms and attention, which would mix the two.
        repeat: factor on the correlations of a group each time it is merged (the paper's alpha).
        within: share of its units that a client may merge among themselves (the paper's beta).

    Source: Stoica et al. 2024, "ZipIt! Merging models from different tasks without training", section 4 and alg. 1.
    """
    if not all(0 <= value <= 1 for value in (partial, repeat, within)):
        raise BadOption(f"partial = {partial}, repeat = {repeat}, within = {within}; give numbers between 0 and 1")
    spaces = problem.graph.hidden
    apart = spaces[round(partial * len(spaces)) :]
    maps = {space.name: _side_by_side(problem, space) for space in apart}
    for space in seen_spaces(problem):
        if space.name not in maps:
            _, covariance = joint_moments(problem, space)
            labels = zipped(correlations(covariance), offsets(problem, space), space.size, repeat, within)
            maps[space.name] = group_maps(problem, space, labels, space.size)
    return Proposal(with_maps(problem, maps), notes={"apart": [space.name for space in apart]})


def zipped(
    correlation: torch.Tensor, edges: list[int], size: int, repeat: float = 0.3, within: float = 0.125
) -> torch.Tensor:
    """Groups `[pool]` of units: the two most correlated groups are merged until `size` are left.

    What a merged group has in common with another is the least that its members have, times `repeat`. A group belongs
    to the client of its first unit, as in the published code; a client's groups are merged with each other at most
    `within` times its units, and beyond that only where nothing else is left (a client wider than the result).
    """
    similarity = correlation.clone().fill_diagonal_(-torch.inf)
    clients = torch.cat([torch.full((high - low,), k) for k, (low, high) in enumerate(pairwise(edges))])
    budget = [int(within * (high - low)) for low, high in pairwise(edges)]
    labels = torch.arange(len(similarity))
    for _ in range(len(similarity) - size):
        spent = torch.tensor([left <= 0 for left in budget])[clients]
        barred = (clients[:, None] == clients) & spent
        open_pairs = similarity.masked_fill(barred, -torch.inf)
        if not bool(torch.isfinite(open_pairs).any()):
            open_pairs = similarity
        kept, gone = sorted(divmod(int(open_pairs.argmax()), len(similarity)))
        least = repeat * torch.minimum(similarity[kept], similarity[gone])
        least[kept] = -torch.inf
        similarity[kept], similarity[:, kept] = least, least
        similarity[gone], similarity[:, gone] = -torch.inf, -torch.inf
        labels[labels == gone] = kept
        budget[int(clients[kept])] -= int(clients[kept] == clients[gone])
    return torch.unique(labels, return_inverse=True)[1]


def _side_by_side(problem: FusionProblem, space: Space) -> tuple[SpaceMap, ...]:
    """Maps that give every client its own part of a wider space."""
    attention = {s.name for layer in attention_layers(problem.graph) for s in (layer.heads, *layer.inner)}
    if space.name in attention or space.symmetry is Symmetry.ORTHOGONAL or _normalised(problem, space):
        raise BadOption(
            f"partial zip keeps space '{space.name}' apart, which attention or a norm would mix again; zip all of it "
            "(partial=1) or fewer of the last spaces"
        )
    edges = offsets(problem, space)
    maps = []
    for weight, (low, high) in zip(problem.mixing, pairwise(edges)):
        place = torch.zeros(edges[-1], high - low, dtype=torch.float64)
        place[low:high] = torch.eye(high - low, dtype=torch.float64)
        maps.append(SpaceMap(place / weight if weight > 0 else 0 * place, place.T.contiguous(), Symmetry.LINEAR))
    return tuple(maps)


def _normalised(problem: FusionProblem, space: Space) -> bool:
    """Whether a norm takes its statistics over the units of the space."""
    client = problem.clients[problem.reference]
    owners = {axis.parameter.rpartition(".")[0] for axis in (*space.scales, *space.writers)}
    return any(isinstance(client.get_submodule(name), (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)) for name in owners)
