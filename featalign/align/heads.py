"""Attention heads: matched as units, and turned inside into the basis of their partners. Groups of channels likewise.

Inside a head only the query-key product `W_Q W_K^T` and the output-value product `W_V W_O` matter: any orthogonal
change of the head's own basis leaves both alone. Heads are matched by these products; then the source's heads are
re-expressed in the basis of their partners (a gauge, which preserves the function), so that averaging compares like
with like.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from featalign.align.linear import polar
from featalign.align.maps import ROTATIONS, Alignment, SpaceMap
from featalign.spaces.apply import moved, moved_tensor, pieces_of, rebuilt, unit_rows
from featalign.spaces.graph import Axis, Space, SpaceGraph, Symmetry
from featalign.transport import solve


@dataclass(frozen=True)
class Heads:
    """The spaces of one attention layer, or of one run of grouped channels: what are units, and what lies inside them.

    Attributes:
        heads: the heads, or the groups of channels (grouped convolutions, group normalisation).
        inner: query-key and output-value bases that may be turned.
        members: the query heads within groups that share keys and values; the groups are the heads then. Or the
            channels of a group that are read outside. None where nothing may be ordered.
        inside: `members` and all bases, those that keep their directions (rotary positions) too; all channels.
        nested: whether these are themselves the query heads within groups, which hold the bases.
        channels: whether these are groups of channels.
    """

    heads: Space
    inner: tuple[Space, ...] = ()
    members: Space | None = None
    inside: tuple[Space, ...] = ()
    nested: bool = False
    channels: bool = False


def attention_layers(graph: SpaceGraph) -> list[Heads]:
    """Attention layers of a traced graph, found by the labels tracing gave their axes."""
    found = []
    spaces = [space for space in graph.hidden if space.name.rpartition(".")[2] == "heads"]
    for space in spaces:
        if any(_within(space, other) for other in spaces):
            found.append(Heads(space, nested=True))
            continue
        mine = {axis.parameter for axis in (*space.writers, *space.readers)}
        bases = tuple(
            other
            for other in graph.hidden
            if other.name.rpartition(".")[2].rstrip(".0123456789") in ("qk", "ov")
            and mine & {axis.parameter for axis in (*other.writers, *other.readers)}
        )
        members = next((other for other in graph.hidden if other not in bases and _within(other, space)), None)
        inner = tuple(other for other in bases if other.symmetry in ROTATIONS)
        found.append(Heads(space, inner, members, (*bases, *(() if members is None else (members,)))))
    return found


def grouped_layers(graph: SpaceGraph) -> list[Heads]:
    """Groups of channels that a convolution or a normalisation keeps together, with the channels inside."""
    attention = {space.name for found in attention_layers(graph) for space in (found.heads, *found.inside)}
    spaces = {space.name: space for space in graph.hidden if space.name not in attention}
    found: dict[str, list[Space]] = {}
    for space in spaces.values():
        beside = {name: None for axis in space.writers for name in graph.by_parameter[axis.parameter]}
        for name in beside:
            if name in spaces and _within(space, spaces[name]):
                found.setdefault(name, []).append(space)
    held = {space.name for inside in found.values() for space in inside}
    layers = []
    for name, inside in found.items():
        if name in held:
            continue
        outside = {axis.parameter for axis in spaces[name].readers}
        read = [space for space in inside if any(axis.parameter in outside for axis in space.readers)]
        layers.append(Heads(spaces[name], (), read[0] if len(read) == 1 else None, tuple(inside), channels=True))
    return layers


def whole_layers(graph: SpaceGraph) -> list[Heads]:
    """Heads and groups of channels that may be picked whole; query heads within groups go with their group."""
    return [found for found in (*attention_layers(graph), *grouped_layers(graph)) if not found.nested]


def _within(space: Space, other: Space) -> bool:
    """Whether the units lie inside those of another space, side by side in each."""

    def inside(axis: Axis, outer: Axis) -> bool:
        width = space.size * axis.repeat
        place = (axis.parameter, axis.dim, axis.offset) == (outer.parameter, outer.dim, outer.offset)
        fits = outer.repeat % width == 0 and axis.tile == outer.tile * other.size * (outer.repeat // width)
        return place and fits and outer.repeat > 1

    pairs = ((axis, outer) for axis in space.writers for outer in other.writers)
    return space.name != other.name and any(inside(*pair) for pair in pairs)


def match_nested(
    layer: Heads,
    graph: SpaceGraph,
    maps: Mapping[str, SpaceMap],
    source: Mapping[str, torch.Tensor],
    target: Mapping[str, torch.Tensor],
) -> SpaceMap:
    """Map of query heads within groups, by their weights; `source` has the gauge of its groups applied."""
    pieces = pieces_of(graph, maps)
    own = {axis.parameter: axis for axis in (*layer.heads.writers, *layer.heads.readers)}
    rows = [
        [unit_rows(value, axis, layer.heads.size) for value in (moved_tensor(source[name], name, pieces), target[name])]
        for name, axis in own.items()
    ]
    mine, theirs = (torch.cat([pair[side] for pair in rows], 1) for side in (0, 1))
    similarity = mine @ theirs.T
    return SpaceMap.from_plan(solve((similarity.max() - similarity).contiguous(), method="exact"))


def match_heads(
    layer: Heads,
    graph: SpaceGraph,
    maps: Mapping[str, SpaceMap],
    source: Mapping[str, torch.Tensor],
    target: Mapping[str, torch.Tensor],
) -> tuple[SpaceMap, dict[str, torch.Tensor]]:
    """Map of the heads, and the gauge `[heads, width, width]` of every basis inside them.

    `maps` are those of the other spaces, as far as they are matched: weights whose other side is not say nothing;
    `source` and `target` are state dicts.
    """
    pieces = pieces_of(graph, maps)
    known = {space.name for space in graph.spaces if space.pinned} | set(maps) | {layer.heads.name}
    known |= {space.name for space in layer.inside if space != layer.members}
    mine: dict[str, torch.Tensor] = {}
    theirs: dict[str, torch.Tensor] = {}
    for space in layer.inner:
        names = {axis.parameter for axis in (*space.writers, *space.readers)}
        settled = {name for name in names if set(graph.by_parameter[name]) <= known} or names
        moved_state = {name: moved_tensor(source[name], name, pieces) for name in settled}
        mine[space.name] = torch.cat([block for _, _, block in _blocks(layer, space, moved_state)], 2)
        same_state = {name: target[name] for name in settled}
        theirs[space.name] = torch.cat([block for _, _, block in _blocks(layer, space, same_state)], 2)
    similarity: Any = 0
    for space in layer.inner:
        a, b = mine[space.name], theirs[space.name]
        cross = torch.einsum("hdf,kef->hkde", a, b)  # what the best rotation between two heads can reach
        scale = a.flatten(1).norm(dim=1)[:, None] * b.flatten(1).norm(dim=1)
        similarity = similarity + torch.linalg.svdvals(cross).sum(-1) / scale.clamp_min(1e-30)
    if not layer.inner:
        return SpaceMap.identity(layer.heads.size), {}
    found = SpaceMap.from_plan(solve((similarity.max() - similarity).contiguous(), method="exact"))
    partner = found.out.argmax(0)
    gauge = {
        space.name: torch.stack(
            [polar(theirs[space.name][partner[h]] @ mine[space.name][h].T) for h in range(layer.heads.size)]
        )
        for space in layer.inner
    }
    return found, gauge


def aligned_state(module: nn.Module, graph: SpaceGraph, alignment: Alignment) -> dict[str, torch.Tensor]:
    """State dict of `module` moved by an alignment: the gauge inside its heads first, then the maps."""
    return moved(gauged(module, graph, alignment.gauge), graph, alignment.maps)


def gauged(module: nn.Module, graph: SpaceGraph, gauge: Mapping[str, torch.Tensor]) -> nn.Module:
    """The same function with what is inside heads turned by `gauge`; the module itself where that is empty."""
    return rebuilt(module, gauged_state(module, graph, gauge)) if gauge else module


def gauged_state(module: nn.Module, graph: SpaceGraph, gauge: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """State dict with what is inside heads turned by `gauge`; the module's function stays the same."""
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    if not gauge:
        return state
    for layer in (*attention_layers(graph), *grouped_layers(graph)):
        for space in layer.inside:
            if space.name not in gauge:
                continue
            for name, axes, block in _blocks(layer, space, state):
                turned = torch.einsum("hde,hef->hdf", gauge[space.name], block)
                _write(state[name], axes, layer.heads.size, space.size, turned)
    return state


def gauged_inputs(
    tensor: torch.Tensor, parameter: str, dims: tuple[int, ...], graph: SpaceGraph, gauge: Mapping[str, torch.Tensor]
) -> torch.Tensor:
    """A tensor laid out like a parameter, of any size along its other dimensions, with what is inside heads turned.

    Only along `dims`, which a map reads: moments of what it reads are turned like its weight.
    """
    tensor = tensor.clone()
    for layer in (*attention_layers(graph), *grouped_layers(graph)):
        for space in layer.inside:
            if space.name in gauge:
                for _, axes, block in _blocks(layer, space, {parameter: tensor}, dims):
                    turned = torch.einsum("hde,hef->hdf", gauge[space.name], block)
                    _write(tensor, axes, layer.heads.size, space.size, turned)
    return tensor


def _blocks(
    layer: Heads, space: Space, state: Mapping[str, torch.Tensor], dims: tuple[int, ...] | None = None
) -> Iterator[tuple[str, tuple[Axis, Axis], torch.Tensor]]:
    """Tensors that hold a head-internal space (along `dims`), as `[heads, width, features]` float64."""
    head_axes = (*layer.heads.writers, *layer.heads.readers, *layer.heads.scales)
    for axis in (*space.writers, *space.readers, *space.scales):
        if axis.parameter not in state or (dims is not None and axis.dim not in dims):
            continue
        same = [
            h for h in head_axes if h.parameter == axis.parameter and (h.dim != axis.dim or h.offset == axis.offset)
        ]
        if same:
            block = _view(state[axis.parameter], same[0], axis, layer.heads.size, space.size)
            yield axis.parameter, (same[0], axis), block


def _part(tensor: torch.Tensor, heads: Axis, width: Axis, count: int, size: int) -> torch.Tensor:
    """`[heads, width, tiles, groups, repeats, ...]` of a tensor, a view.

    Packed projections (`in_proj_weight`) hold several tiles, groups of query heads several bases per head; the query
    heads of a group repeat for all of their width.
    """
    if heads.dim == width.dim:
        within = heads.repeat // (size * width.repeat)
        length = heads.tile * count * heads.repeat
        part = tensor.movedim(heads.dim, 0)[heads.offset : heads.offset + length]
        return part.unflatten(0, (heads.tile, count, within, size, width.repeat)).movedim((1, 3), (0, 1))
    length = heads.tile * count * heads.repeat
    part = tensor.movedim((heads.dim, width.dim), (0, 1))[heads.offset : heads.offset + length]
    return part.unflatten(0, (heads.tile, count, heads.repeat)).movedim((1, 3), (0, 1))


def _view(tensor: torch.Tensor, heads: Axis, width: Axis, count: int, size: int) -> torch.Tensor:
    return _part(tensor, heads, width, count, size).reshape(count, size, -1).double()


def _write(tensor: torch.Tensor, axes: tuple[Axis, Axis], count: int, size: int, values: torch.Tensor) -> None:
    part = _part(tensor, *axes, count, size)
    part.copy_(values.reshape(part.shape).to(tensor.dtype))


def inner_map(space: Space) -> SpaceMap:
    """The map of a space inside heads once its gauge is fixed."""
    return SpaceMap.identity(space.size, Symmetry.ORTHOGONAL)
