"""How each hidden space is reduced: projected, its units picked, its heads picked whole, or kept inside a head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from featalign.align.heads import Heads, whole_layers
from featalign.align.maps import ROTATIONS
from featalign.fuse.problem import FusionProblem
from featalign.fuse.writers import Writer, written
from featalign.spaces.graph import Axis, Space


@dataclass(frozen=True)
class Roles:
    """How each hidden space is reduced.

    Attributes:
        projected, selected: linear spaces, and those whose units are picked.
        heads: attention layers, whose heads (or groups of query heads) are picked, and groups of channels.
        inner: spaces inside heads or groups, which follow them.
        readers: by space, the maps that read it and where it lies in what they read.
    """

    projected: tuple[Space, ...]
    selected: tuple[Space, ...]
    heads: tuple[Heads, ...]
    inner: tuple[Space, ...]
    readers: Mapping[str, tuple[tuple[Writer, Axis], ...]]


def roles(problem: FusionProblem) -> Roles:
    """The role of every hidden space of a problem."""
    graph = problem.graph
    whole = tuple(whole_layers(graph))
    heads = {found.heads.name for found in whole}
    inner = {space.name for found in whole for space in found.inside}
    readers = {
        space.name: tuple((w, axis) for w in problem.writers if (axis := w.reading(space)) is not None)
        for space in graph.hidden
    }
    plain = [space for space in graph.hidden if space.name not in heads | inner]
    return Roles(
        tuple(space for space in plain if space.symmetry in ROTATIONS),
        tuple(space for space in plain if space.symmetry not in ROTATIONS),
        whole,
        tuple(space for space in graph.hidden if space.name in inner),
        readers,
    )


def selected_streams(problem: FusionProblem, found: Roles) -> list[Space]:
    """Streams whose norms keep their gains (post-norm): their units are picked before the heads that write to them."""
    attention = [layer.heads.name for layer in found.heads if not layer.channels]
    writing = [writer for name in attention for writer, _ in found.readers[name]]
    fed = {written(problem.graph, writer) for writer in writing}
    return [space for space in found.selected if space.name in fed]


def values_of(layer: Heads) -> Space | None:
    """The basis of a layer's values and outputs, where it may be turned."""
    return next((space for space in layer.inner if space.name.rpartition(".")[2].startswith("ov")), None)
