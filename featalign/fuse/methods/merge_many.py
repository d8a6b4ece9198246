"""MergeMany: every client in turn is moved towards the mean of the others, by weights, until nothing changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from featalign.align.maps import Alignment
from featalign.align.weights import match_weights
from featalign.errors import BadOption
from featalign.fuse.methods.registry import Proposal, fusion_method
from featalign.fuse.problem import FusionProblem
from featalign.fuse.rule import apply_rule, identity_alignment

TOLERANCE = 1e-4


@fusion_method("merge-many", basis="neuron", needs=("equal-widths",), default=False)
def merge_many(problem: FusionProblem, *, sweeps: int = 20) -> Proposal:
    """Git re-basin for many networks: each is matched to the mean of all others until no map changes.

    No client is special: the frame is that of the common mean. Clients count alike in that mean, whatever the mixing
    weights. Source: Ainsworth, Hayase and Srinivasa 2023, algorithm 3.
    """
    if sweeps < 1:
        raise BadOption(f"sweeps = {sweeps} of 'merge-many'; give at least 1")
    count, generator = len(problem.cohort), torch.Generator().manual_seed(problem.cohort.seed)
    alignments = [identity_alignment(problem)] * count
    done, changed = 0, count > 1
    while changed and done < sweeps:
        changed = False
        for client in torch.randperm(count, generator=generator).tolist():
            goal = _mean_of_others(problem, alignments, client)
            found = match_weights(problem.clients[client], goal, problem.graph, seed=problem.cohort.seed)
            changed |= _differs(found, alignments[client])
            alignments[client] = found
        done += 1
    return Proposal(tuple(alignments), notes={"sweeps": done})


def _mean_of_others(problem: FusionProblem, alignments: Sequence[Alignment], client: int) -> nn.Module:
    others = len(problem.cohort) - 1
    mixing = tuple(0.0 if k == client else 1 / others for k in range(others + 1))
    return apply_rule(replace(problem, mixing=mixing), alignments)


def _differs(one: Alignment, other: Alignment) -> bool:
    return any(not torch.allclose(one.maps[name].out, other.maps[name].out, atol=TOLERANCE) for name in one.maps)
