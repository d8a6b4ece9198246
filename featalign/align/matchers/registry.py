"""`@matcher`: a registered function that chooses one space map from a `Pair`; lifted to all spaces of a network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from featalign.align.heads import attention_layers, gauged_state, inner_map, match_heads, match_nested
from featalign.align.maps import ROTATIONS, Alignment, SpaceMap
from featalign.align.pair import Clients, Pair
from featalign.align.weights import match_weights
from featalign.errors import BadOption
from featalign.options import bind_options
from featalign.registry import Registry
from featalign.spaces.graph import Space

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
    weights; then heads.
    """
    chosen = MATCHERS[name]
    bound = bind_options(chosen.function, options, f"matcher '{name}'")
    graph = clients.graphs[0]
    layers = attention_layers(graph) if chosen.gauge else []
    inside = {space.name for layer in layers for space in (layer.heads, *layer.inner)}
    maps: dict[str, SpaceMap] = {}
    for space in graph.hidden:
        if space.name in inside:
            continue
        pair = Pair(clients, space.name, dict(maps))
        used = chosen if chosen.admits(space) else MATCHERS[chosen.otherwise]
        if used.paired and not pair.paired:
            continue
        maps[space.name] = used.function(pair, **(bound if used is chosen else {}))
    if any(space.name not in maps and space.name not in inside for space in graph.hidden):
        fixed = {
            **maps,
            **{space.name: SpaceMap.identity(space.size) for space in graph.hidden if space.name in inside},
        }
        found = match_weights(*clients.modules, *clients.graphs, seed=clients.seed, fixed=fixed)
        maps = {name: found.maps[name] for name in found.maps if name not in inside}
    gauge: dict[str, torch.Tensor] = {}
    source, target = (module.state_dict() for module in clients.modules)
    groups, nested = ([layer for layer in layers if layer.nested is kind] for kind in (False, True))
    for layer in (*groups, *nested, *(groups if nested else ())):  # groups again once the heads within them are matched
        if layer.nested:
            gauged = gauged_state(clients.modules[0], graph, gauge)
            maps[layer.heads.name] = match_nested(layer, graph, maps, gauged, target)
            continue
        others = {name: found for name, found in maps.items() if name != layer.heads.name}
        maps[layer.heads.name], turned = match_heads(layer, graph, others, source, target)
        gauge.update(turned)
        maps.update({space.name: inner_map(space) for space in layer.inner})
    ordered = {space.name: maps[space.name] for space in graph.hidden}
    return Alignment(ordered, gauge)
