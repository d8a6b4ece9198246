"""Git re-basin's weight matching as a fusion method."""

from __future__ import annotations

from featalign.align.weights import match_weights
from featalign.fuse.methods import Proposal, fusion_method
from featalign.fuse.problem import FusionProblem
from featalign.fuse.rule import identity_alignment


@fusion_method("weight-matching", basis="neuron", unequal_widths=True)
def weight_matching(problem: FusionProblem) -> Proposal:
    """Git re-basin: all spaces matched by coordinate ascent on weights, without data."""
    target = problem.clients[problem.reference]
    stay = identity_alignment(problem)
    return Proposal(
        tuple(
            stay
            if k == problem.reference
            else match_weights(client, target, problem.graphs[k], problem.graph, seed=problem.seed)
            for k, client in enumerate(problem.clients)
        )
    )
