"""Neuron interpolation: units of all clients in groups, whose weighted means the fused layers are fitted to."""

from __future__ import annotations

from itertools import pairwise

import torch

from featalign.errors import BadOption
from featalign.fuse.methods.groups import group_maps, joint_moments, offsets, seen_spaces, with_maps
from featalign.fuse.methods.registry import Proposal, fusion_method
from featalign.fuse.problem import FusionProblem
from featalign.spaces.apply import unit_rows
from featalign.spaces.graph import Space
from featalign.transport import solve

GROUPINGS = ("hungarian", "kmeans")
IMPORTANCES = ("uniform", "reading")
SWEEPS = 100  # of k-means


@fusion_method("neuron-interpolation", basis="neuron", refit="required", follows_mixing=True, default=False)
def neuron_interpolation(
    problem: FusionProblem, *, grouping: str = "hungarian", importance: str = "uniform"
) -> Proposal:
    """Units grouped by what they respond to; every layer is regressed to the means of its groups.

    Args:
        grouping: "hungarian" pairs each client's units with the reference's; "kmeans" groups the units of all freely.
        importance: of a unit within its group: "uniform", or by how strongly it is read and how much it varies
            ("reading", which stands in for the paper's gradient attributions and needs no labels either).

    Source: Luenam et al. 2025, "Model fusion via neuron interpolation" (Hungarian fusion and k-means fusion with linear
    least-squares fits).
    """
    for name, value, known in (("grouping", grouping, GROUPINGS), ("importance", importance, IMPORTANCES)):
        if value not in known:
            raise BadOption(f"{name} '{value}' of 'neuron-interpolation'; choices: {', '.join(known)}")
    maps = {}
    for space in seen_spaces(problem):
        mean, covariance = joint_moments(problem, space)
        second = covariance + torch.outer(mean, mean)
        weights = torch.ones(len(mean), dtype=torch.float64)
        if importance == "reading":
            weights = _strength(problem, space) * covariance.diagonal().clamp_min(0).sqrt()
        weights = weights / weights.mean().clamp_min(1e-300) + 1e-6
        edges = offsets(problem, space)
        if grouping == "hungarian":
            labels = paired(second, edges, problem.reference)
        else:
            start = paired(second, edges, problem.reference)
            shares = torch.cat([torch.full((b - a,), w) for w, (a, b) in zip(problem.mixing, pairwise(edges))]).double()
            labels = clustered(second, start, space.size, weights * shares)
        maps[space.name] = group_maps(problem, space, labels, space.size, weights)
    return Proposal(with_maps(problem, maps))


def _distances(second: torch.Tensor, rows: slice, columns: slice) -> torch.Tensor:
    """`E |a_i - a_j|^2` from second moments `[pool, pool]`."""
    energy = second.diagonal()
    return (energy[rows, None] + energy[columns] - 2 * second[rows, columns]).clamp_min(0)


def paired(second: torch.Tensor, edges: list[int], reference: int) -> torch.Tensor:
    """Groups `[pool]` around the reference's units: every other client's by assignment, or the nearest if it is wider.

    `second [pool, pool]` are uncentred second moments.
    """
    spans = [slice(low, high) for low, high in pairwise(edges)]
    labels = torch.empty(edges[-1], dtype=torch.long)
    size = edges[reference + 1] - edges[reference]
    labels[spans[reference]] = torch.arange(size)
    for k, span in enumerate(spans):
        if k == reference:
            continue
        cost = _distances(second, span, spans[reference])
        nearest = cost.argmin(1)
        if len(cost) <= size:
            nearest = torch.from_numpy(solve(cost, method="exact").dense()).argmax(1)
        labels[span] = nearest
    return labels


def clustered(second: torch.Tensor, labels: torch.Tensor, size: int, weights: torch.Tensor) -> torch.Tensor:
    """Weighted k-means of the units, from their second moments alone, started at `labels` (Lloyd's algorithm).

    A group that is left empty takes the unit farthest from its own centre.
    """
    weights = weights.clamp_min(1e-12)
    for _ in range(SWEEPS):
        member = torch.nn.functional.one_hot(labels, size).double() * weights[:, None]
        member = member / member.sum(0).clamp_min(1e-300)  # centres are `member^T a`
        cross = second @ member
        distance = second.diagonal()[:, None] - 2 * cross + (member * cross).sum(0)
        own = distance.gather(1, labels[:, None])[:, 0]
        best = distance.argmin(1)
        closer = distance.gather(1, best[:, None])[:, 0] < own * (1 - 1e-9) - 1e-12
        found = torch.where(closer, best, labels)
        for group in torch.nonzero(torch.bincount(found, minlength=size) == 0).flatten().tolist():
            crowded = torch.bincount(found, minlength=size)[found] > 1
            far = int(torch.where(crowded, own, torch.full_like(own, -1.0)).argmax())
            found[far], own[far] = group, 0.0
        if torch.equal(found, labels):
            break
        labels = found
    return labels


def _strength(problem: FusionProblem, space: Space) -> torch.Tensor:
    """`[pool]`: norm of everything that each client's next layers multiply with each of its units."""
    found = []
    for client, graph in zip(problem.clients, problem.graphs):
        own, state = graph[space.name], client.state_dict()
        rows = [unit_rows(state[axis.parameter], axis, own.size).pow(2).sum(1) for axis in own.readers]
        found.append(torch.stack(rows).sum(0).sqrt() if rows else torch.ones(own.size).double())
    return torch.cat(found)
