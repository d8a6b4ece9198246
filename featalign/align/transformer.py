"""Aligning pre-norm transformers: a rotated residual stream, heads as units.

A residual stream under RMSNorm without gains is unchanged by rotations. Heads permute as units, and inside each head
the query-key product `W_Q W_K^T` and the output-value product `W_V W_O` are what matters: any orthogonal change of the
head's own basis leaves both alone. Heads are matched by these products; then the source's heads are re-expressed in the
basis of their partners (a function-preserving change, "gauge"), so that averaging compares like with like.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from featalign.align.maps import Alignment, SpaceMap
from featalign.align.neuron import cross_moments
from featalign.align.orthogonal import polar, procrustes_activations, procrustes_weights, stream_moments
from featalign.data.inputs import Inputs
from featalign.errors import BadOption
from featalign.spaces.apply import moved_tensor, pieces_of
from featalign.spaces.graph import Axis, Space, SpaceGraph, Symmetry
from featalign.transport import solve

ROTATIONS = (Symmetry.ORTHOGONAL, Symmetry.LINEAR)
StreamMap = Callable[[Space], SpaceMap]


@dataclass(frozen=True)
class TransformerAlignment:
    """A transformer alignment.

    Attributes:
        module: the source with its heads re-expressed in the basis of their partners; computes the same function.
        alignment: maps of every hidden space of `module` into the target's.
    """

    module: nn.Module
    alignment: Alignment


@dataclass(frozen=True)
class Heads:
    """The spaces of one attention layer: heads as units, and the bases inside a head."""

    heads: Space
    inner: tuple[Space, ...]  # query-key and output-value


def attention_layers(graph: SpaceGraph) -> list[Heads]:
    """Attention layers of a traced graph, found by the labels tracing gave their axes."""
    found = []
    for space in graph.hidden:
        if space.name.rpartition(".")[2] == "heads":
            mine = {axis.parameter for axis in (*space.writers, *space.readers)}
            inner = [
                other
                for other in graph.hidden
                if other.symmetry in ROTATIONS and mine & {a.parameter for a in (*other.writers, *other.readers)}
                and other.name.rpartition(".")[2].rstrip(".0123456789") in ("qk", "ov")
            ]  # fmt: skip
            found.append(Heads(space, tuple(inner)))
    return found


def align_transformer(
    source: nn.Module,
    target: nn.Module,
    graph: SpaceGraph,
    probe: Inputs | torch.Tensor,
    stream_map: str | StreamMap = "activations",
) -> TransformerAlignment:
    """Align two transformers of one architecture, in canonical form (`spaces.canonical`).

    Args:
        stream_map: of rotation-symmetric spaces: "activations" or "weights" (Procrustes), "permutation" (the best
            assignment), or a function of the space that returns its map (feature plans).

    Heads are matched by their query-key and output-value products, other spaces by pre-activations on the probe.
    """
    layers = attention_layers(graph)
    inner = {space.name for layer in layers for space in layer.inner}
    by_head = {layer.heads.name for layer in layers}
    maps: dict[str, SpaceMap] = {}
    for space in graph.hidden:
        if space.name in inner or space.name in by_head:
            continue
        if space.symmetry in ROTATIONS:
            maps[space.name] = _stream_map(stream_map, source, target, graph, space, probe)
        else:
            maps[space.name] = _unit_map(source, target, space, probe)
    gauged = copy.deepcopy(source)
    state = {name: tensor.clone() for name, tensor in gauged.state_dict().items()}
    for layer in layers:
        maps[layer.heads.name] = _match_heads(layer, graph, maps, state, target.state_dict())
        for space in layer.inner:
            maps[space.name] = replace(SpaceMap.identity(space.size), symmetry=Symmetry.ORTHOGONAL)
    gauged.load_state_dict(state)
    return TransformerAlignment(gauged, Alignment(maps))


def _stream_map(
    kind: str | StreamMap,
    source: nn.Module,
    target: nn.Module,
    graph: SpaceGraph,
    space: Space,
    probe: Inputs | torch.Tensor,
) -> SpaceMap:
    if callable(kind):
        return kind(space)
    if kind == "activations":
        return procrustes_activations(source, target, space, probe)
    if kind == "weights":
        return procrustes_weights(source, target, graph, space)
    if kind == "permutation":
        return SpaceMap.from_plan(solve(stream_moments(source, target, space, probe).squared_distances.sqrt()))
    raise BadOption(f"unknown stream map '{kind}'; choices: activations, weights, permutation, or a function")


def _unit_map(source: nn.Module, target: nn.Module, space: Space, probe: Inputs | torch.Tensor) -> SpaceMap:
    moment = cross_moments(source, target, probe, [space.before])[0]
    return SpaceMap.from_plan(solve(moment.squared_distances.sqrt(), method="exact"))


def _match_heads(
    layer: Heads,
    graph: SpaceGraph,
    maps: dict[str, SpaceMap],
    state: dict[str, torch.Tensor],
    target: dict[str, torch.Tensor],
) -> SpaceMap:
    """Match heads by their products, then turn the source's heads (in `state`) into the basis of their partners."""
    pieces = pieces_of(graph, maps)
    theirs = {space.name: list(_tensors(layer, space, target)) for space in layer.inner}
    moved = {name: moved_tensor(tensor, name, pieces) for name, tensor in state.items()}
    mine = {space.name: list(_tensors(layer, space, moved)) for space in layer.inner}
    similarity: Any = 0
    for space in layer.inner:
        a, b = (torch.cat([block for _, _, block in side[space.name]], 2) for side in (mine, theirs))
        cross = torch.einsum("hdf,kef->hkde", a, b)  # what the best rotation between two heads can reach
        scale = a.flatten(1).norm(dim=1)[:, None] * b.flatten(1).norm(dim=1)
        similarity = similarity + torch.linalg.svdvals(cross).sum(-1) / scale.clamp_min(1e-30)
    found = SpaceMap.from_plan(solve((similarity.max() - similarity).contiguous(), method="exact"))
    partner = found.out.argmax(0)
    for space in layer.inner:
        a, b = (torch.cat([block for _, _, block in side[space.name]], 2) for side in (mine, theirs))
        turns = torch.stack([polar(b[partner[h]] @ a[h].T).out for h in range(len(a))]).double()
        for name, axes, block in _tensors(layer, space, state):
            _write_heads(state[name], axes, layer.heads.size, space.size, torch.einsum("hde,hef->hdf", turns, block))
    return found


def _tensors(
    layer: Heads, space: Space, state: dict[str, torch.Tensor]
) -> Iterator[tuple[str, tuple[Axis, Axis], torch.Tensor]]:
    """Tensors that hold a head-internal basis, as `[heads, width, features]` float64."""
    head_axes = (*layer.heads.writers, *layer.heads.readers)
    for axis in (*space.writers, *space.readers):
        same = [
            h for h in head_axes if h.parameter == axis.parameter and (h.dim != axis.dim or h.offset == axis.offset)
        ]
        if same:
            yield (
                axis.parameter,
                (same[0], axis),
                _view(state[axis.parameter], same[0], axis, layer.heads.size, space.size),
            )


def _view(tensor: torch.Tensor, heads: Axis, width: Axis, count: int, size: int) -> torch.Tensor:
    if heads.dim == width.dim:
        part = tensor.movedim(heads.dim, 0)[heads.offset : heads.offset + count * size]
        return part.reshape(count, size, -1).double()
    return tensor.movedim((heads.dim, width.dim), (0, 1)).reshape(count, size, -1).double()


def _write_heads(tensor: torch.Tensor, axes: tuple[Axis, Axis], count: int, size: int, values: torch.Tensor) -> None:
    heads, width = axes
    if heads.dim == width.dim:
        part = tensor.movedim(heads.dim, 0)[heads.offset : heads.offset + count * size]
    else:
        part = tensor.movedim((heads.dim, width.dim), (0, 1))
    part.copy_(values.reshape(part.shape).to(tensor.dtype))


def align_softly(
    source: nn.Module, target: nn.Module, graph: SpaceGraph, probe: Inputs | torch.Tensor, epsilon: float = 0.05
) -> Alignment:
    """Soft alignment of every space by entropic transport on activations (Imfeld et al. 2024, transformer fusion).

    Each space gets the pair `diag(1/b) T^T`, `diag(1/a) T` of its Sinkhorn plan; nothing is kept exact.
    `epsilon` is relative to the mean cost.
    """
    maps, plans = {}, {}
    for space in graph.hidden:
        moment = cross_moments(source, target, probe, [space.after])[0]
        cost = moment.squared_distances.sqrt()
        plans[space.name] = solve(cost, method="sinkhorn", eps=epsilon)
        maps[space.name] = SpaceMap.from_plan(plans[space.name])
    return Alignment(maps, plans)
