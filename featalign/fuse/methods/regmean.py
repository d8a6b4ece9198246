"""RegMean: every layer regressed on its own, from each client's own activations, in closed form."""

from __future__ import annotations

from featalign.align.matchers import align
from featalign.fuse.methods.registry import Proposal, fusion_method
from featalign.fuse.moments import client_moments, moment_refit
from featalign.fuse.problem import FusionProblem
from featalign.fuse.rule import apply_rule, identity_alignment

RIDGE = 1e-6  # towards the average, where a Gram matrix is singular


@fusion_method("regmean", basis="neuron", needs=("affine-maps",), follows_mixing=True, default=False)
def regmean(problem: FusionProblem, *, alpha: float = 0.9, start: str = "ot-acts") -> Proposal:
    """RegMean: layers that do best, in least squares, what every client's layer did on its own activations.

    `W = (sum_k G_k)^-1 sum_k G_k W_k` with `G_k` the second moments of what the layer reads in client k, its entries
    off the diagonal times `alpha`. Clients are brought into one basis by the matcher `start` first; "vanilla" is the
    paper's setting, networks that were trained from a common start. Own inputs are the clients' data where known, the
    probe elsewhere. Source: Jin et al. 2023, "Dataless knowledge fusion by merging weights of language models", eq. 2.
    """
    stay = identity_alignment(problem)
    others = range(len(problem.cohort))
    alignments = tuple(stay if k == problem.reference else align(problem.pair(k), start) for k in others)
    module = apply_rule(problem, alignments)
    moments = [
        client_moments(client, graph, inputs) if weight > 0 else {}
        for weight, client, graph, inputs in zip(problem.mixing, problem.clients, problem.graphs, problem.cohort.own)
    ]
    fits = moment_refit(problem, module, alignments, moments, RIDGE, alpha)
    return Proposal(alignments, module=module, complete=False, notes={"layers": [fit.layer for fit in fits]})
