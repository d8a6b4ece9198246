"""`@matcher`: a registered function that chooses one space map from a `Pair`; lifted to all spaces of a network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from featalign.align.heads import attention_layers, inner_map, match_heads
from featalign.align.maps import Alignment, SpaceMap
from featalign.align.pair import Clients, Pair
from featalign.align.weights import ROTATIONS
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
) -> Callable[[Function], Function]:
    """Register a function `Pair -> SpaceMap`; the first line of its docstring is its summary."""
    if spaces not in SPACES:
        raise BadOption(f"matcher '{name}': spaces='{spaces}'; choices: {', '.join(SPACES)}")

    def file(function: Function) -> Function:
        summary = (function.__doc__ or "").strip().splitlines()[0]
        MATCHERS.register(name)(Matcher(function, spaces, otherwise, basis, needs, gauge, refit, default, exact, summary))
        return function

    return file


def align(clients: Clients, name: str, **options: Any) -> Alignment:
    """Every hidden space of the source matched to the target's by a registered matcher.

    Spaces whose samples are paired come first, in topological order; then those that need the maps of others (heads,
    token mixing). Where the matcher is not meant for a space, the one it names takes over.
    """
    chosen = MATCHERS[name]
    bound = bind_options(chosen.function, options, f"matcher '{name}'")
    graph = clients.graphs[0]
    layers = attention_layers(graph) if chosen.gauge else []
    inside = {space.name for layer in layers for space in (layer.heads, *layer.inner)}
    waiting = [space for space in graph.hidden if space.name not in inside]
    waiting.sort(key=lambda space: space.pre is not None and not space.pre.paired)
    maps: dict[str, SpaceMap] = {}
    for space in waiting:
        pair = Pair(clients, space.name, dict(maps))
        if chosen.admits(space):
            maps[space.name] = chosen.function(pair, **bound)
        else:
            maps[space.name] = MATCHERS[chosen.otherwise].function(pair)
    gauge = {}
    source, target = (module.state_dict() for module in clients.modules)
    for layer in layers:
        maps[layer.heads.name], turned = match_heads(layer, graph, maps, source, target)
        gauge.update(turned)
        maps.update({space.name: inner_map(space) for space in layer.inner})
    ordered = {space.name: maps[space.name] for space in graph.hidden}
    return Alignment(ordered, gauge)
