"""The one fusion rule: `W = sum_k lambda_k O_k W_k R_k`, `b = sum_k lambda_k (O_k b_k + shift_k)`.

Every method of the toolkit is a way to choose the maps; all of them end here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from featalign.align.heads import aligned_state
from featalign.align.maps import Alignment, SpaceMap
from featalign.fuse.problem import FusionProblem
from featalign.spaces.apply import Piece, Pieces, moved_tensor, rebuilt


def apply_rule(problem: FusionProblem, alignments: Sequence[Alignment]) -> nn.Module:
    """Move every client by its maps and average with the mixing weights; the widths are those of the out-maps.

    Clients of mixing weight zero take no part. Integer buffers (batch counters) and entries that are not finite (masks)
    are the reference's.
    """
    total: dict[str, torch.Tensor] = {}
    kinds = problem.clients[problem.reference].state_dict()
    for weight, client, graph, alignment in zip(problem.mixing, problem.clients, problem.graphs, alignments):
        if weight == 0:
            continue
        for name, tensor in aligned_state(client, graph, alignment).items():
            if tensor.is_floating_point():
                total[name] = total.get(name, 0) + weight * tensor.double()
    shares = _shares(problem, alignments)
    state = {}
    for name, kind in kinds.items():
        found = moved_tensor(total.get(name, kind), name, shares)
        if found.shape == kind.shape and kind.is_floating_point() and not bool(torch.isfinite(kind).all()):
            found = torch.where(torch.isfinite(kind), found, kind.double())
        state[name] = found.to(kind.dtype)
    return rebuilt(problem.clients[problem.reference], state)


def _shares(problem: FusionProblem, alignments: Sequence[Alignment]) -> Pieces:
    """What gains are divided by: the weight of the clients that have a share in each unit."""
    pieces: Pieces = {}
    for space in problem.graph.hidden:
        share: Any = 0
        for weight, alignment in zip(problem.mixing, alignments):
            if space.name in alignment.maps:
                share = share + weight * (alignment.maps[space.name].out.abs().sum(1) > 0).double()
        if space.scales and isinstance(share, torch.Tensor) and bool((share > 0).all()) and bool((share < 1).any()):
            for axis in space.scales:
                piece = Piece(space.name, axis, len(share), torch.diag(1 / share))
                pieces.setdefault((axis.parameter, axis.dim), []).append(piece)
    return pieces


def identity_alignment(problem: FusionProblem) -> Alignment:
    """The alignment of a client that stays where it is."""
    return Alignment({space.name: SpaceMap.identity(space.size, space.symmetry) for space in problem.graph.hidden})
