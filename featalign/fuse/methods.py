"""The named fusion methods. A method chooses space maps (and, if it has them, its own refit targets), nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from featalign.align.feature import FeatureMatch, decode_by_symmetry, fold, match_features, re_express
from featalign.align.maps import Alignment, SpaceMap
from featalign.align.neuron import align_by_activations, align_by_weights
from featalign.dictionaries.basis import Basis
from featalign.errors import BadOption, SpaceMismatch
from featalign.fuse.problem import FusionProblem, Held
from featalign.fuse.refit import Targets, map_targets
from featalign.fuse.rule import identity_alignment
from featalign.registry import Registry
from featalign.spaces.graph import Layer, Space


@dataclass(frozen=True)
class Proposal:
    """What a method proposes: one alignment per client, targets for the refit, and what it saw on the way."""

    alignments: tuple[Alignment, ...]
    targets: Targets | None = None
    exact_first: bool = True
    matches: dict[tuple[int, str], FeatureMatch] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Method:
    """A registered method: the function and what the table and the checks need to know of it."""

    propose: Callable[[FusionProblem], Proposal]
    basis: str  # "none", "neuron", "feature" or "pool"
    unequal_widths: bool = False
    needs_refit: bool = False  # has no meaning before the refit
    follows_mixing: bool = False  # what it proposes depends on the mixing weights
    summary: str = ""


METHODS: Registry[Method] = Registry("method")


def fusion_method(name: str, **facts: Any) -> Callable[[Callable[[FusionProblem], Proposal]], Any]:
    """Register a function `FusionProblem -> Proposal`; the first line of its docstring is its summary."""

    def file(function: Callable[[FusionProblem], Proposal]) -> Callable[[FusionProblem], Proposal]:
        summary = (function.__doc__ or "").strip().splitlines()[0]
        METHODS.register(name)(Method(function, summary=summary, **facts))
        return function

    return file


def _star(problem: FusionProblem, align: Callable[[int], Alignment]) -> tuple[Alignment, ...]:
    """Every client aligned to the reference, which stays where it is."""
    stay = identity_alignment(problem)
    return tuple(stay if k == problem.reference else align(k) for k in range(len(problem.clients)))


@fusion_method("vanilla", basis="none")
def vanilla(problem: FusionProblem) -> Proposal:
    """Average position by position (FedAvg after independent training)."""
    return Proposal(_star(problem, lambda k: identity_alignment(problem)))


@fusion_method("ot-acts", basis="neuron", unequal_widths=True)
def ot_acts(problem: FusionProblem) -> Proposal:
    """OTFusion: units matched by the distance of their pre-activations on the probe."""
    target = problem.clients[problem.reference]
    return Proposal(
        _star(problem, lambda k: align_by_activations(problem.clients[k], target, problem.graphs[k], problem.probe))
    )


@fusion_method("ot-wts", basis="neuron", unequal_widths=True)
def ot_wts(problem: FusionProblem) -> Proposal:
    """OTFusion: units matched by the distance of their incoming weights, layer by layer."""
    target = problem.clients[problem.reference]
    return Proposal(
        _star(problem, lambda k: align_by_weights(problem.clients[k], target, problem.graphs[k], problem.graph))
    )


@fusion_method("feature-ot", basis="feature")
def feature_ot(problem: FusionProblem) -> Proposal:
    """Latents matched by partial OT; the plan is projected onto what each space's symmetry allows."""
    matches = feature_matches(problem)

    def align(k: int) -> Alignment:
        maps, plans = {}, {}
        for space in problem.graph.hidden:
            bases = _bases(problem.dictionaries, space, len(problem.clients))
            decoded, plan = decode_by_symmetry(
                matches[k, space.name], bases[k], bases[problem.reference], space.symmetry
            )
            maps[space.name] = decoded
            if plan is not None:
                plans[space.name] = plan
        return Alignment(maps, plans)

    return Proposal(_star(problem, align), matches=matches)


@fusion_method("feature-reexpress", basis="feature", needs_refit=True)
def feature_reexpress(problem: FusionProblem) -> Proposal:
    """Matched latents written in the reference's dictionary; weights regressed from the layer's own inputs."""
    start = feature_ot(problem)
    reference = problem.reference
    expressions = {}
    for (k, name), match in start.matches.items():
        space = problem.graph[name]
        bases = _bases(problem.dictionaries, space, len(problem.clients))
        pre, post = space.before, space.after
        batches = ((held[reference][post], held[reference][pre]) for _, held, _ in problem.activations())
        expressions[k, name] = re_express(match, bases[k], bases[reference], batches)

    def targets(problem: FusionProblem, layer: Layer, held: Sequence[Held]) -> torch.Tensor:
        space = problem.graph[layer.writes]
        if space.pinned:
            return map_targets(start.alignments)(problem, layer, held)
        pre, post = space.before, space.after
        own = held[reference][pre].double()
        total = problem.mixing[reference] * own
        for k, weight in enumerate(problem.mixing):
            if k != reference and weight > 0:
                total = total + weight * expressions[k, space.name](held[k][post], held[reference][post], own)
        return total

    return Proposal(start.alignments, targets, exact_first=False, matches=start.matches)


@fusion_method("feature-fold", basis="feature")
def feature_fold(problem: FusionProblem) -> Proposal:
    """Naive contrast: a linear map through matched atoms folded into the weights."""
    matches = feature_matches(problem)

    def align(k: int) -> Alignment:
        maps = {}
        for space in problem.graph.hidden:
            bases = _bases(problem.dictionaries, space, len(problem.clients))
            maps[space.name] = fold(matches[k, space.name], bases[k], bases[problem.reference])
        return Alignment(maps)

    return Proposal(_star(problem, align), matches=matches)


def feature_matches(problem: FusionProblem) -> dict[tuple[int, str], FeatureMatch]:
    """Feature match of every client against the reference in every hidden space, on the refit inputs (kept once)."""
    kept = problem.memory.matches
    for space in problem.graph.hidden:
        bases = _bases(problem.dictionaries, space, len(problem.clients))
        post = space.after
        for k in range(len(problem.clients)):
            if k != problem.reference and (k, space.name) not in kept:
                pairs = ((held[k][post], held[problem.reference][post]) for _, held, _ in problem.activations())
                kept[k, space.name] = match_features(bases[k], bases[problem.reference], pairs)
    return dict(kept)


def _bases(bases: Any, space: Space, clients: int) -> tuple[Basis, ...]:
    found = bases.get(space.name)
    if found is None or len(found) != clients:
        raise BadOption(
            f"space '{space.name}' has no feature basis for each of the {clients} clients; "
            "train dictionaries first (fa.dictionaries.train) or choose a neuron method"
        )
    return tuple(found)


def choose(names: Sequence[str]) -> list[str]:
    """Validated method names, in the order given; raises `UnknownName` listing the choices."""
    for name in names:
        METHODS[name]
    return list(names)


def require_widths(problem: FusionProblem, name: str) -> None:
    """Raise `SpaceMismatch` when widths differ and the method moves units one to one."""
    if problem.equal_widths or METHODS[name].unequal_widths:
        return
    for space in problem.graph.hidden:
        for k, graph in enumerate(problem.graphs):
            if graph[space.name].size != space.size:
                able = [other for other in METHODS if METHODS[other].unequal_widths]
                raise SpaceMismatch(
                    f"'{space.name}' has {graph[space.name].size} units in client {k} and {space.size} in the "
                    f"reference; method '{name}' wants equal widths, use one of: {', '.join(able)}"
                )


__all__ = ["METHODS", "Method", "Proposal", "SpaceMap", "choose", "feature_matches", "fusion_method", "require_widths"]
