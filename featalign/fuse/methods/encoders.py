"""Networks whose hidden layer is a linear code of the inputs: the code is chosen anew, its encoder regressed.

Two clients store the same features in unrelated directions, so that no linear map of activations carries one code into
the other. What each latent responds to is a linear function of the inputs all the same, and inputs are shared: the
responses are pooled, written with the reference's atoms or with new ones, and the layer follows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from featalign.align.feature import FeatureMatch, match_features
from featalign.align.packing import pack
from featalign.dictionaries import Basis, Dictionary, NeuronBasis, random_atoms, train, untrained
from featalign.dictionaries.preflight import default_k
from featalign.errors import BadOption
from featalign.fuse.code import BATCH, GAINS, TINY, ClientCodes, responses
from featalign.fuse.methods.registry import METHODS, Proposal, fusion_method
from featalign.fuse.problem import FusionProblem

MINIMUM = 0.5  # correlation of two codes below which they are not the same feature
OWN = 0.5  # share of the matched latents' median variance below which an unmatched latent is a spare, not a feature
ALIVE = 1e-3  # share of the largest variance below which a latent of the reference is dead
NEEDS = ("one-linear-code", "dictionaries")


@fusion_method("feature-reencode", basis="feature", refit="none", needs=NEEDS, follows_mixing=True, exact=False)
def feature_reencode(problem: FusionProblem, *, minimum: float = MINIMUM) -> Proposal:
    """Latents matched by partial OT, re-expressed in the reference's atoms, encoder regressed from inputs.

    `minimum`: correlation below which two latents are not one feature.
    """
    codes = ClientCodes(problem)
    return _reencoded(codes, codes.bases, minimum)


@fusion_method(
    "random-dictionary", basis="none", refit="none", needs=NEEDS, follows_mixing=True, exact=False, default=False
)
def random_dictionary(problem: FusionProblem, *, minimum: float = MINIMUM) -> Proposal:
    """`feature-reencode` with untrained dictionaries of the same size: what matching finds without learning."""
    codes, draw = ClientCodes(problem), torch.Generator().manual_seed(problem.cohort.seed)
    bases = [untrained(random_atoms(*_shape(basis), draw), max(1, int(_sparsity(basis)))) for basis in codes.bases]
    return _reencoded(codes, bases, minimum)


def _reencoded(codes: ClientCodes, bases: Sequence[Basis], minimum: float) -> Proposal:
    """Matched latents of every client in the reference's atoms at the reference's amplitude, regressed from inputs.

    Weights are pooled over clients' own data (each input counts where it was seen); the reference's layer enters as it
    is. A client's latents without a partner keep no place here: see `feature-union`.
    """
    problem, reference = codes.problem, codes.problem.reference
    target = codes.linear(reference, bases[reference])
    total = codes.encoder(reference) * codes.seen[reference]
    matches = {}
    for client in _others(problem):
        own, match = codes.linear(client, bases[client]), codes.match(client, bases, minimum)
        first, second = torch.from_numpy(match.pairs[:, 0]), torch.from_numpy(match.pairs[:, 1])
        amplitude = (target.variance[second] / own.variance[first].clamp_min(TINY)).sqrt().clamp(*GAINS)
        total = total + target.atoms[second].T @ (amplitude[:, None] * own.response[first]) * codes.seen[client]
        matches[client, codes.layers.space] = match
    encoder = total / torch.stack(codes.seen).sum(0)
    return _proposal(problem, codes.network(encoder), matches)


@fusion_method("joint-dictionary", basis="feature", refit="none", needs=NEEDS, follows_mixing=True, exact=False)
def joint_dictionary(problem: FusionProblem, *, latents: int | None = None, k: float | None = None) -> Proposal:
    """One dictionary of all clients side by side, its codes written with the reference's part of the atoms.

    `latents` and `k` of the joint dictionary; those of the reference's own by default.
    """
    codes, reference = ClientCodes(problem), problem.reference
    together, own = torch.cat(codes.posts, 1), codes.bases[reference]
    wanted: dict[str, Any] = {
        "width": latents or len(own.atoms), "k": k or _sparsity(own), "seed": problem.cohort.seed,
    }  # fmt: skip
    facts = {"client": "joint", "space": codes.layers.space}
    basis: Dictionary = problem.memory.get(
        f"joint dictionary {wanted}", (problem.activations,), lambda: train(together, metadata=facts, **wanted)
    )
    response, _ = responses(codes.probe, basis.encode(together))
    start = sum(space.size for space in codes.spaces[:reference])
    part = basis.atoms[:, start : start + codes.spaces[reference].size]
    encoder, written = codes.encoder(reference), part.double().T @ response
    written = written * encoder.norm() / written.norm().clamp_min(TINY)
    weight = problem.mixing[reference]
    return _proposal(problem, codes.network(weight * encoder + (1 - weight) * written), {})


@fusion_method("feature-union", basis="feature", refit="none", needs=NEEDS, follows_mixing=True, exact=False)
def feature_union(problem: FusionProblem, *, width: int | None = None, minimum: float = MINIMUM) -> Proposal:
    """Shared latents merged, own latents kept: all get directions in `width` units, the least coherent ones first.

    Directions are laid out anew or around the reference's, whichever returns the clients' own outputs better. Many own
    latents need the first; with few of them, or with features split over several latents, the second loses less.
    `width` is the reference's by default. Raises `BadOption` for fewer.
    """
    codes = ClientCodes(problem)
    least = codes.spaces[problem.reference].size
    size = width or least
    if size < least:
        raise BadOption(f"width = {size} of 'feature-union'; give at least the reference's {least}")
    response, atoms, matches = _union(codes, minimum)
    shares = torch.stack([x.var(0).double() + TINY for x in codes.data])
    energy = (response**2 * shares.amax(0)).sum(1)  # as often as where it occurs most
    layouts = (pack(atoms, energy, size, hold) for hold in (False, True))
    fused = [codes.network(layout.T @ response) for layout in layouts]
    return _proposal(problem, min(fused, key=codes.distillation_error), matches, {"features": len(response)})


def _union(
    codes: ClientCodes, minimum: float
) -> tuple[torch.Tensor, torch.Tensor, dict[tuple[int, str], FeatureMatch]]:
    """Responses `[features, inputs]` of all clients' features, the reference's atoms (zero rows are new), matches."""
    problem, reference = codes.problem, codes.problem.reference
    target, seen = codes.linear(reference, codes.bases[reference]), codes.seen
    alive = torch.nonzero(target.variance > ALIVE * target.variance.max()).flatten()
    merged = target.response[alive] * seen[reference]
    weight = seen[reference].expand_as(merged).clone()
    atoms = target.atoms[alive]
    known = codes.bases[reference].encode(codes.posts[reference])[:, alive]
    matches = {}
    for client in _others(problem):
        found, view = codes.linear(client, codes.bases[client]), codes.bases[client].encode(codes.posts[client])
        match = match_features(
            NeuronBasis(view.shape[1]), NeuronBasis(known.shape[1]), zip(view.split(BATCH), known.split(BATCH)),
            minimum=minimum,
        )  # fmt: skip
        first, second = torch.from_numpy(match.pairs[:, 0]), torch.from_numpy(match.pairs[:, 1])
        merged[second] += found.response[first] * seen[client]
        weight[second] += seen[client]
        own = torch.from_numpy(np.setdiff1d(np.arange(view.shape[1]), match.pairs[:, 0]))
        own = own[found.variance[own] > OWN * found.variance[first].median()]
        merged = torch.cat([merged, found.response[own] * seen[client]])
        weight = torch.cat([weight, seen[client].expand(len(own), -1)])
        atoms = torch.cat([atoms, atoms.new_zeros(len(own), atoms.shape[1])])
        known = torch.cat([known, view[:, own]], 1)
        matches[client, codes.layers.space] = codes.match(client, codes.bases, minimum)
    return merged / weight.clamp_min(TINY), atoms, matches


def _others(problem: FusionProblem) -> list[int]:
    """Clients that take part besides the reference."""
    return [k for k, weight in enumerate(problem.mixing) if weight > 0 and k != problem.reference]


def _shape(basis: Basis) -> tuple[int, int]:
    """Latents and units."""
    latents, units = basis.atoms.shape
    return latents, units


def _sparsity(basis: Basis) -> float:
    """Active latents per sample that the basis was made for."""
    return float(getattr(basis, "k", 0) or default_k(basis.atoms.shape[1]))


def _proposal(
    problem: FusionProblem,
    module: nn.Module,
    matches: Mapping[tuple[int, str], FeatureMatch],
    notes: Mapping[str, Any] | None = None,
) -> Proposal:
    """The network with the maps that come closest to it, for the ledger."""
    nearest = METHODS["feature-project"].function(problem).alignments
    return Proposal(nearest, matches=matches, notes=notes or {}, module=module)
