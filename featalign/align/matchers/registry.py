"""`@matcher`: a registered function that chooses one space map from a `Pair`; lifted to all spaces of a network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from featalign.align.heads import Heads, attention_layers, gauged, gauged_state, inner_map, match_heads, match_nested
from featalign.align.maps import ROTATIONS, Alignment, SpaceMap
from featalign.align.pair import Clients, Pair
from featalign.align.weights import match_weights
from featalign.errors import BadOption
from featalign.options import bind_options
from featalign.registry import Registry
from featalign.spaces.graph import Space, SpaceGraph

Function = Callable[..., SpaceMap]
SPACES = ("any", "units", "rotations")


@dataclass(frozen=True)
class Matcher:
    """A registered matcher.

    Attributes:
        function: `Pair` (and options) to one map; its signature is its options.
        spaces: "any", "units" (elementwise nonlinearity) or "rotations" (linear spaces and streams); in other spaces
            `otherwise` takes over.
        otherwise: name of the matcher of all other spaces.
        basis: "none", "neuron" or "feature"; what the match is made in.
        needs: what the problem must bring (`fuse.needs`).
        gauge: whether attention heads are matched and turned into the basis of their partners.
        refit: whether the refit of the lifted method is "optional" or "none".
        default: whether the lifted method runs when no methods are named.
        exact: whether a network matched with itself is left where it is.
        paired: whether it compares samples of activations, which correspond only where the other axes of a site keep
            their basis; elsewhere weights decide, once the other spaces are matched.
        summary: the first line of the function's docstring.
    """

    function: Function
    spaces: str
    otherwise: str
    basis: str
    needs: tuple[str, ...]
    gauge: bool
    refit: str
    default: bool
    exact: bool
    paired: bool
    summary: str

    def admits(self, space: Space) -> bool:
        """Whether the matcher is meant for the space."""
        return self.spaces == "any" or (self.spaces == "rotations") == (space.symmetry in ROTATIONS)


MATCHERS: Registry[Matcher] = Registry("matcher")


def matcher(
    name: str,
    *,
    basis: str = "neuron",
    spaces: str = "any",
    otherwise: str = "ot-acts",
    needs: tuple[str, ...] = (),
    gauge: bool = True,
    refit: str = "optional",
    default: bool = True,
    exact: bool = True,
    paired: bool = True,
) -> Callable[[Function], Function]:
    """Register a function `Pair -> SpaceMap`; the first line of its docstring is its summary.

    Raises `BadOption` for unknown `spaces`, `UnknownName` for a name that is taken.
    """
    if spaces not in SPACES:
        raise BadOption(f"matcher '{name}': spaces='{spaces}'; choices: {', '.join(SPACES)}")

    def file(function: Function) -> Function:
        summary = (function.__doc__ or "").strip().splitlines()[0]
        entry = Matcher(function, spaces, otherwise, basis, needs, gauge, refit, default, exact, paired, summary)
        MATCHERS.register(name)(entry)
        return function

    return file


def align(clients: Clients, name: str, **options: Any) -> Alignment:
    """Every hidden space of the source matched to the target's by a registered matcher.

    Spaces go in topological order. Where the matcher is not meant for a space, the one it names takes over. Spaces in
    which samples do not correspond before other spaces are matched (token mixing, groups) come last, together, by
    weights; then heads; then, by weights, what only heads write, and heads once more.
    """
    chosen = MATCHERS[name]
    bound = bind_options(chosen.function, options, f"matcher '{name}'")
    graph = clients.graphs[0]
    layers = attention_layers(graph) if chosen.gauge else []
    inside = {space.name for layer in layers for space in (layer.heads, *layer.inner)}
    found = _Found(clients, layers)
    behind = [
        space
        for space in graph.hidden
        if not chosen.paired and chosen.admits(space) and _written_by(graph, space, inside)
    ]
    for space in graph.hidden:
        if space.name in inside or space in behind:
            continue
        pair = Pair(clients, space.name, dict(found.maps))
        used = chosen if chosen.admits(space) else MATCHERS[chosen.otherwise]
        if used.paired and not pair.paired:
            continue
        found.maps[space.name] = used.function(pair, **(bound if used is chosen else {}))
    known = inside | {space.name for space in behind}
    if any(space.name not in found.maps and space.name not in known for space in graph.hidden):
        fixed = {space.name: SpaceMap.identity(space.size) for space in graph.hidden if space.name in known}
        joint = match_weights(*clients.modules, *clients.graphs, seed=clients.seed, fixed={**found.maps, **fixed})
        found.maps = {name: joint.maps[name] for name in joint.maps if name not in known}
    found.match_heads()
    if behind:
        turned = replace(clients, modules=(gauged(clients.modules[0], graph, found.gauge), clients.modules[1]))
        for space in behind:
            found.maps[space.name] = chosen.function(Pair(turned, space.name, dict(found.maps)), **bound)
        found.match_heads()
    return Alignment({space.name: found.maps[space.name] for space in graph.hidden}, found.gauge)


def _written_by(graph: SpaceGraph, space: Space, inside: set[str]) -> bool:
    """Whether every weight that writes a space reads heads, so that weights tell nothing before heads are matched."""
    weights = {a.parameter for a in space.writers if not a.parameter.endswith("bias")}
    reads_heads = [bool(inside & set(graph.by_parameter[name])) for name in weights]
    return space.name not in inside and bool(weights) and all(reads_heads)


@dataclass
class _Found:
    """The maps and the gauge while a network is matched."""

    clients: Clients
    layers: Sequence[Heads]
    maps: dict[str, SpaceMap] = field(default_factory=dict)
    gauge: dict[str, torch.Tensor] = field(default_factory=dict)

    def match_heads(self) -> None:
        """Match all heads by the maps of the other spaces; groups again once the heads within them are matched."""
        graph, (source, target) = self.clients.graphs[0], (module.state_dict() for module in self.clients.modules)
        groups, nested = ([layer for layer in self.layers if layer.nested is kind] for kind in (False, True))
        for layer in (*groups, *nested, *(groups if nested else ())):
            if layer.nested:
                turned = gauged_state(self.clients.modules[0], graph, self.gauge)
                self.maps[layer.heads.name] = match_nested(layer, graph, self.maps, turned, target)
                continue
            others = {name: found for name, found in self.maps.items() if name != layer.heads.name}
            self.maps[layer.heads.name], turned = match_heads(layer, graph, others, source, target)
            self.gauge.update(turned)
            self.maps.update({space.name: inner_map(space) for space in layer.inner})
