"""Re-expression: matched latents of every client written in the reference's dictionary, then regressed."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from featalign.align.activations import Held
from featalign.align.feature import re_express
from featalign.align.pair import Pair
from featalign.fuse.methods.registry import METHODS, Proposal, fusion_method
from featalign.fuse.problem import FusionProblem
from featalign.fuse.refit import map_targets
from featalign.spaces.graph import Layer, Site


@fusion_method("feature-reexpress", basis="feature", refit="required", needs=("dictionaries",))
def feature_reexpress(problem: FusionProblem) -> Proposal:
    """Matched latents written in the reference's dictionary; weights regressed from the layer's own inputs."""
    start = METHODS["feature-project"].function(problem)
    reference = problem.reference
    expressions = {}
    for (k, name), match in start.matches.items():
        space, pair = problem.graph[name], Pair(problem.pair(k), name)
        batches = ((held[reference][space.after], held[reference][space.before]) for _, held, _ in problem.activations)
        expressions[k, name] = re_express(match, *pair.bases, batches)

    writers = [layer.writes for layer in problem.graph.layers]

    def targets(problem: FusionProblem, layer: Layer, held: Sequence[Held]) -> torch.Tensor:
        space = problem.graph[layer.writes]
        alone = writers.count(space.name) == 1 and space.pre == Site(layer.module)
        if space.pinned or not alone:  # what is re-expressed is not this layer's output
            return map_targets(start.alignments)(problem, layer, held)
        own = held[reference][space.before].double()
        total = problem.mixing[reference] * own
        for k, weight in enumerate(problem.mixing):
            if k != reference and weight > 0:
                theirs = held[k][problem.graphs[k][space.name].after]
                total = total + weight * expressions[k, space.name](theirs, held[reference][space.after], own)
        return total

    return Proposal(start.alignments, targets, exact_first=False, matches=start.matches)
