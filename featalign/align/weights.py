"""Weight matching by coordinate ascent (git re-basin, Ainsworth et al. 2023, algorithm 1), over any traced network.

One space is solved at a time, all others held: the gain of giving unit i of the source the place j of the target is
the inner product of everything that writes or reads the two. Spaces with an elementwise nonlinearity take the best
assignment, linear and rotation spaces the polar factor (Procrustes on weights).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from featalign.align.maps import Alignment, SpaceMap
from featalign.errors import ArchitectureMismatch
from featalign.spaces.apply import Pieces, moved_tensor, pieces_of, unit_rows
from featalign.spaces.graph import Axis, Space, SpaceGraph, Symmetry
from featalign.transport import solve
from featalign.transport.plan import Plan

ROTATIONS = (Symmetry.ORTHOGONAL, Symmetry.LINEAR)
_STATISTICS = ("running_mean", "running_var")


def match_weights(
    source: nn.Module,
    target: nn.Module,
    graph: SpaceGraph,
    target_graph: SpaceGraph | None = None,
    sweeps: int = 50,
    seed: int = 0,
    rotate: bool = True,
) -> Alignment:
    """Maps that bring the weights of `source` closest to those of `target`, without any data.

    The first sweep goes from the input upwards and looks only at tensors whose other axes are settled, so that a
    planted permutation is found layer by layer; later sweeps visit the spaces in random order and use every tensor,
    until no map changes.

    Args:
        target_graph: needed only when widths differ (soft maps by transport then).
        sweeps: at most this many.
        rotate: give linear and rotation spaces the polar factor; permutations otherwise.

    Raises `ArchitectureMismatch` when the two graphs differ.
    """
    target_graph = target_graph or graph
    if [space.name for space in graph.hidden] != [space.name for space in target_graph.hidden]:
        raise ArchitectureMismatch("the two networks have different hidden spaces; match clients of one architecture")
    matcher = _Matcher(source, target, graph, target_graph, rotate)
    generator = torch.Generator().manual_seed(seed)
    for space in graph.hidden:
        matcher.update(space, settled_only=True)
    done, changed = 0, True
    while changed and done < sweeps:
        order = torch.randperm(len(graph.hidden), generator=generator)
        changed = any([matcher.update(graph.hidden[k]) for k in order])
        done += 1
    return Alignment(matcher.maps, matcher.plans, {"sweeps": done, "similarity": matcher.similarity()})


class _Matcher:
    """The state of the ascent: current maps, and the two networks' weights."""

    def __init__(self, source: nn.Module, target: nn.Module, graph: SpaceGraph, target_graph: SpaceGraph, rotate: bool):
        self.source, self.target = source.state_dict(), target.state_dict()
        self.graph, self.target_graph, self.rotate = graph, target_graph, rotate
        self.maps: dict[str, SpaceMap] = {}
        self.plans: dict[str, Plan] = {}
        self.spaces_of: dict[str, set[str]] = {}
        for space in graph.hidden:
            for axis in (*space.writers, *space.readers, *space.scales):
                self.spaces_of.setdefault(axis.parameter, set()).add(space.name)

    def gain(self, space: Space, settled_only: bool = False) -> torch.Tensor:
        """`[m, n]`: inner product of target unit j and source unit i over the tensors that hold the space."""
        other = self.target_graph[space.name]
        pieces = pieces_of(self.graph, self.maps)
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

    def update(self, space: Space, settled_only: bool = False) -> bool:
        """Solve one space and say whether its map changed."""
        gain = self.gain(space, settled_only)
        if self.rotate and space.symmetry in ROTATIONS and len(gain) == gain.shape[1]:
            u, _, vh = torch.linalg.svd(gain)
            found = SpaceMap((u @ vh).float(), (u @ vh).T.float(), Symmetry.ORTHOGONAL)
        else:
            self.plans[space.name] = solve((gain.max() - gain).T.contiguous(), method="exact")
            found = SpaceMap.from_plan(self.plans[space.name])
        before = self.maps.get(space.name)
        self.maps[space.name] = found
        return before is None or not torch.allclose(before.out, found.out, atol=1e-4)

    def similarity(self) -> float:
        """Cosine between all of the moved source's weights and the target's (running statistics left out)."""
        pieces = pieces_of(self.graph, self.maps)
        inner = norm_a = norm_b = 0.0
        for name, tensor in self.source.items():
            if tensor.is_floating_point() and not name.endswith(_STATISTICS):
                a, b = moved_tensor(tensor, name, pieces).double(), self.target[name].double()
                inner, norm_a, norm_b = (
                    inner + float((a * b).sum()),
                    norm_a + float((a * a).sum()),
                    norm_b + float((b * b).sum()),
                )
        return inner / max((norm_a * norm_b) ** 0.5, 1e-30)
