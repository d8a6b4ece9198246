"""Universe matching: all clients into common atoms at once, so that matchings agree whichever way one goes round."""

from __future__ import annotations

from itertools import combinations

import torch

from featalign.align.linear import polar
from featalign.align.maps import ROTATIONS, SpaceMap
from featalign.errors import BadOption
from featalign.fuse.methods.groups import pair_of, seen_spaces, with_maps
from featalign.fuse.methods.registry import Proposal, fusion_method
from featalign.fuse.problem import FusionProblem
from featalign.spaces.graph import Space, Symmetry
from featalign.transport import universe

COSTS = ("correlation", "distance")
SWEEPS = 50  # of the generalised Procrustes problem
STILL = 1e-10  # relative gain of a sweep below which it has converged


@fusion_method("universe", basis="neuron", needs=("equal-widths",), default=False)
def universe_matching(problem: FusionProblem, *, cost: str = "correlation") -> Proposal:
    """All clients matched at once through a universe of atoms, by activations: `P_AB = P_A P_B^T`.

    Units behind a nonlinearity are assigned to atoms (`transport.universe`), linear spaces turned to their common mean
    (generalised Procrustes); then everything is written in the reference's order. `cost`: one minus "correlation" of
    pre-activations, or their "distance". Source: Crisostomi et al. 2024 (C2M3), whose objective over weights
    by Frank-Wolfe is replaced by one over activations by exact assignments in turn; Gower 1975.
    """
    if cost not in COSTS:
        raise BadOption(f"cost '{cost}' of 'universe'; choices: {', '.join(COSTS)}")
    maps = {}
    for space in seen_spaces(problem) if len(problem.cohort) > 1 else ():
        maps[space.name] = _turned(problem, space) if space.symmetry in ROTATIONS else _assigned(problem, space, cost)
    return Proposal(with_maps(problem, maps))


def _assigned(problem: FusionProblem, space: Space, cost: str) -> tuple[SpaceMap, ...]:
    """Permutations onto the reference's units, through the atoms."""
    costs = {}
    for k, other in combinations(range(len(problem.cohort)), 2):
        moments = pair_of(problem, k, other, space).moments
        costs[k, other] = 1 - moments.correlation if cost == "correlation" else moments.squared_distances.sqrt()
    found = universe(costs)
    outs = [
        torch.from_numpy(found.matching(problem.reference, k).toarray()).double() for k in range(len(problem.cohort))
    ]
    return tuple(SpaceMap(out, out.T.contiguous(), Symmetry.PERMUTATION) for out in outs)


def _turned(problem: FusionProblem, space: Space) -> tuple[SpaceMap, ...]:
    """Rotations that bring all clients closest to their mean, written in the reference's basis."""
    count = len(problem.cohort)
    cross = {}
    for k, other in combinations(range(count), 2):
        moments = pair_of(problem, k, other, space).stream_moments
        cross[k, other] = moments.covariance_ab + torch.outer(moments.mean_a, moments.mean_b)
        cross[other, k] = cross[k, other].T
    eye = torch.eye(space.size, dtype=torch.float64)
    outs, value = {problem.reference: eye}, -float("inf")
    for _ in range(SWEEPS):
        for k in range(count):
            others = [outs[j] @ cross[j, k] for j in outs if j != k]
            if others:  # at first only the reference is placed
                goal = torch.stack(others).sum(0)
                outs[k] = polar(goal + 1e-9 * goal.norm() * eye)
        now = sum(float((outs[j] @ cross[j, k] * outs[k]).sum()) for j, k in cross if j < k)
        if now <= value + STILL * abs(value):
            break
        value = now
    turned = [outs[problem.reference].T @ outs[k] for k in range(count)]
    return tuple(SpaceMap(out, out.T.contiguous(), Symmetry.ORTHOGONAL) for out in turned)
