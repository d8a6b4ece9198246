"""Matching by weights alone: incoming rows (OTFusion, wts) and joint coordinate ascent (git re-basin, algorithm 1).

In the ascent one space is solved at a time, all others held: the gain of giving unit i of the source the place j of
the target is the inner product of everything that writes or reads the two. Spaces with an elementwise nonlinearity
take the best assignment, linear and rotation spaces the polar factor (Procrustes on weights). Attention heads are
compared by what no basis inside them changes, and turned inside into the basis of their partners at once.
Source: Ainsworth, Hayase and Srinivasa 2023; Singh and Jaggi 2020.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import nn

from featalign.align.heads import Heads, attention_layers, gauged_state, inner_map, match_heads
from featalign.align.linear import rotation
from featalign.align.maps import ROTATIONS, Alignment, SpaceMap
from featalign.errors import ArchitectureMismatch, SpaceMismatch
from featalign.spaces.apply import Pieces, moved_tensor, pieces_of, unit_rows
from featalign.spaces.graph import Axis, Space, SpaceGraph
from featalign.spaces.norms import RootMeanSquare
from featalign.transport import solve

SILENT = 1e-12  # share of the energy that is written, below which a direction is silent
_STATISTICS = ("running_mean", "running_var")  # describe the data, not the unit


def incoming_rows(
    state: Mapping[str, torch.Tensor],
    graph: SpaceGraph,
    name: str,
    settled: Mapping[str, SpaceMap] | None = None,
    like: Mapping[str, torch.Tensor] | None = None,
) -> torch.Tensor:
    """What writes each unit of a space, `[size, features]`, float64: weight rows and biases.

    Only tensors whose other axes have their basis already count, where there are any: rows over inputs in an unknown
    order say nothing about a unit.

    Args:
        state: state dict of the network.
        settled: maps of other spaces, applied first.
        like: state dict of the network it is compared with; raises `SpaceMismatch` when its tensors have other
            dimensions.
    """
    space = graph[name]
    axes = [axis for axis in space.writers if not axis.parameter.endswith(_STATISTICS)]
    pieces = pieces_of(graph, touching(graph, {axis.parameter for axis in axes}, settled or {}))
    rows = []
    for axis in _over_settled(graph, name, axes, settled or {}):
        tensor = state[axis.parameter]
        if like is not None and like[axis.parameter].dim() != tensor.dim():
            raise SpaceMismatch(
                f"'{axis.parameter}' has shapes {tuple(tensor.shape)} and {tuple(like[axis.parameter].shape)}; "
                "clients must share one architecture"
            )
        moved = moved_tensor(tensor, axis.parameter, pieces, skip=(axis.dim, name))
        rows.append(unit_rows(moved, axis, space.size))
    if not rows:
        raise SpaceMismatch(f"no weight writes space '{name}'; match it by activations")
    return torch.cat(rows, dim=1)


def _over_settled(graph: SpaceGraph, name: str, axes: list[Axis], settled: Mapping[str, SpaceMap]) -> list[Axis]:
    """The axes of tensors whose other hidden spaces are settled; all of them where there are none but biases."""
    known = {space.name for space in graph.spaces if space.pinned} | set(settled) | {name}
    found = [axis for axis in axes if set(graph.by_parameter.get(axis.parameter, ())) <= known]
    weights = [axis for axis in axes if not axis.parameter.endswith("bias")]
    return found if any(axis in found for axis in weights) else axes


def touching(graph: SpaceGraph, parameters: Iterable[str], maps: Mapping[str, SpaceMap]) -> dict[str, SpaceMap]:
    """Those of the maps whose spaces lie in any of the parameters."""
    spaces = {space for name in parameters for space in graph.by_parameter.get(name, ())}
    return {name: maps[name] for name in maps.keys() & spaces}


def silent_directions(module: nn.Module, space: Space) -> torch.Tensor:
    """Orthonormal directions `[n, k]` of a space that nothing is written to, biases of norms aside, float64."""
    state, rows = module.state_dict(), [torch.zeros(space.size, 1, dtype=torch.float64)]
    for axis in space.writers:
        if not isinstance(module.get_submodule(axis.parameter.rpartition(".")[0]), RootMeanSquare):
            rows.append(unit_rows(state[axis.parameter], axis, space.size).cpu())
    written = torch.cat(rows, 1)
    values, vectors = torch.linalg.eigh(written @ written.T)
    return vectors[:, values < SILENT * values.sum()]


def match_weights(
    source: nn.Module,
    target: nn.Module,
    graph: SpaceGraph,
    target_graph: SpaceGraph | None = None,
    sweeps: int = 50,
    seed: int = 0,
    rotate: bool = True,
    fixed: Mapping[str, SpaceMap] | None = None,
) -> Alignment:
    """Maps that bring the weights of `source` closest to those of `target`, without any data.

    The first sweep goes from the input upwards and looks only at tensors whose other axes are settled, so that a
    planted permutation is found layer by layer; later sweeps visit the spaces in random order and use every tensor,
    until no map changes.

    Args:
        target_graph: needed only when widths differ (soft maps by transport then).
        sweeps: at most this many.
        rotate: give linear and rotation spaces the polar factor; permutations otherwise.
        fixed: maps of spaces that are matched already and stay as they are.

    Raises `ArchitectureMismatch` when the two graphs differ.
    """
    target_graph = target_graph or graph
    if [space.name for space in graph.hidden] != [space.name for space in target_graph.hidden]:
        raise ArchitectureMismatch("the two networks have different hidden spaces; match clients of one architecture")
    matcher = _Ascent(source, target, graph, target_graph, rotate)
    matcher.maps.update(fixed or {})
    free = matcher.free()
    generator = torch.Generator().manual_seed(seed)
    for each in free:
        matcher.update(each, settled_only=True)
    done, changed = 0, True
    while changed and done < sweeps:
        order = torch.randperm(len(free), generator=generator)
        changed = any([matcher.update(free[k]) for k in order])
        done += 1
    found = {space.name: matcher.maps[space.name] for space in graph.hidden}
    return Alignment(found, matcher.gauge, {"sweeps": done, "similarity": matcher.similarity()})


class _Ascent:
    """The state of the ascent: current maps, and the two networks' weights."""

    def __init__(self, source: nn.Module, target: nn.Module, graph: SpaceGraph, target_graph: SpaceGraph, rotate: bool):
        self.source, self.target = source.state_dict(), target.state_dict()
        self.graph, self.target_graph, self.rotate = graph, target_graph, rotate
        self.maps: dict[str, SpaceMap] = {}
        self.gauge: dict[str, torch.Tensor] = {}
        self.module, self.own = source, self.source
        hidden = {space.name for space in graph.hidden}
        self.spaces_of = {name: hidden & set(spaces) for name, spaces in graph.by_parameter.items()}

    def free(self) -> list[Space | Heads]:
        """What is to be solved, from the input upwards: attention layers as a whole, other spaces one by one.

        Where widths differ or nothing may be rotated, and for heads within groups, the spaces of attention are alike.
        """
        same = [space.size for space in self.graph.hidden] == [space.size for space in self.target_graph.hidden]
        layers = [layer for layer in attention_layers(self.graph) if layer.inner] if same and self.rotate else []
        owner = {space.name: layer for layer in layers for space in (layer.heads, *layer.inner)}
        free: list[Space | Heads] = []
        for space in self.graph.hidden:
            each = owner.get(space.name, space)
            if space.name not in self.maps and each not in free:
                free.append(each)
        return free

    def gain(self, space: Space, settled_only: bool = False) -> torch.Tensor:
        """`[m, n]`: inner product of target unit j and source unit i over the tensors that hold the space."""
        other = self.target_graph[space.name]
        parameters = {axis.parameter for axis in (*space.writers, *space.readers, *space.scales)}
        pieces = pieces_of(self.graph, touching(self.graph, parameters, self.maps))
        total = torch.zeros(other.size, space.size, dtype=torch.float64)
        for own, theirs in self._axes(space, other):
            others = self.spaces_of[own.parameter] - {space.name}
            if settled_only and not others <= set(self.maps):
                continue
            total += self._rows(other, theirs) @ self._moved_rows(space, own, pieces).T
        return total

    def _axes(self, space: Space, other: Space) -> Iterator[tuple[Axis, Axis]]:
        mine = (*space.writers, *space.readers, *space.scales)
        for own, theirs in zip(mine, (*other.writers, *other.readers, *other.scales), strict=True):
            if not own.parameter.endswith(_STATISTICS):
                yield own, theirs

    def _rows(self, space: Space, axis: Axis) -> torch.Tensor:
        return unit_rows(self.target[axis.parameter], axis, space.size)

    def _moved_rows(self, space: Space, axis: Axis, pieces: Pieces) -> torch.Tensor:
        tensor = moved_tensor(self.source[axis.parameter], axis.parameter, pieces, skip=(axis.dim, space.name))
        return unit_rows(tensor, axis, space.size)

    def update(self, space: Space | Heads, settled_only: bool = False) -> bool:
        """Solve one space, or the heads of a layer, and say whether a map changed."""
        if isinstance(space, Heads):
            return self._update_heads(space)
        gain = self.gain(space, settled_only)
        if self.rotate and space.symmetry in ROTATIONS and len(gain) == gain.shape[1]:
            found = rotation(gain)
        else:
            found = SpaceMap.from_plan(solve((gain.max() - gain).T.contiguous(), method="exact"))
        before = self.maps.get(space.name)
        self.maps[space.name] = found
        return before is None or not torch.allclose(before.out, found.out, atol=1e-4)

    def _update_heads(self, layer: Heads) -> bool:
        """Pair the heads of a layer, and turn them inside into the basis of their partners."""
        mine = {layer.heads.name, *(space.name for space in layer.inner)}
        others = {name: found for name, found in self.maps.items() if name not in mine}
        before = self.maps.get(layer.heads.name)
        found, turned = match_heads(layer, self.graph, others, self.own, self.target)
        self.maps[layer.heads.name] = found
        self.maps.update({space.name: inner_map(space) for space in layer.inner})
        self.gauge.update(turned)
        self.source = gauged_state(self.module, self.graph, self.gauge)
        return before is None or not torch.equal(before.out, found.out)

    def similarity(self) -> float:
        """Cosine between all of the moved source's weights and the target's (running statistics left out)."""
        pieces = pieces_of(self.graph, self.maps)
        inner = norm_a = norm_b = 0.0
        for name, tensor in self.source.items():
            if tensor.is_floating_point() and not name.endswith(_STATISTICS):
                a, b = moved_tensor(tensor, name, pieces).double(), self.target[name].double()
                finite = torch.isfinite(a) & torch.isfinite(b)  # masks hold -inf
                inner += float((a * b)[finite].sum())
                norm_a += float((a * a)[finite].sum())
                norm_b += float((b * b)[finite].sum())
        return inner / max((norm_a * norm_b) ** 0.5, 1e-30)
