"""Spaces: which tensor axes share one basis, as plain data.

A *space* is a set of tensor axes that must be expressed in the same basis: a hidden layer, or a whole residual stream.
A tensor *writes* a space through its output axis and *reads* one through its input axis. `tracing` builds these graphs,
`check` proves them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING, Any

from featalign.errors import SpaceMismatch

if TYPE_CHECKING:
    import pandas as pd


class Symmetry(StrEnum):
    """The largest group of maps of a space that leaves the network's function unchanged."""

    PINNED = "pinned"  # inputs, outputs and whatever tracing did not understand: identity only
    PERMUTATION = "permutation"  # elementwise nonlinearity, batch normalisation: permutations
    SCALED_PERMUTATION = "scaled-permutation"  # ReLU: permutations with positive scaling
    ORTHOGONAL = "orthogonal"  # residual stream under RMSNorm: rotations
    LINEAR = "linear"  # no nonlinearity: any invertible map


_RANK = {
    Symmetry.PINNED: 0,
    Symmetry.PERMUTATION: 1,
    Symmetry.SCALED_PERMUTATION: 2,
    Symmetry.ORTHOGONAL: 2,
    Symmetry.LINEAR: 3,
}


_GAUGES = frozenset({"heads", "qk", "ov"})  # labels that tracing gives them


def meet(a: Symmetry, b: Symmetry) -> Symmetry:
    """The largest symmetry contained in both."""
    if a is b:
        return a
    if _RANK[a] == _RANK[b]:
        return Symmetry.PERMUTATION  # scaled permutations and rotations have only permutations in common
    return min(a, b, key=lambda symmetry: _RANK[symmetry])


@dataclass(frozen=True)
class Axis:
    """One dimension of one parameter (or buffer) that lives in a space.

    Index `offset + (t * size + unit) * repeat + r` along `dim` belongs to `unit`, for `t < tile` and `r < repeat`:
    `repeat` counts the positions of a channel-major flattening (or the width of a head), `tile` those of a
    position-major one, `offset` the place in a concatenation.
    """

    parameter: str
    dim: int
    repeat: int = 1
    tile: int = 1
    offset: int = 0


@dataclass(frozen=True)
class Site:
    """Where activations are read: the input or the output of a named submodule (`""` is the module itself).

    Attributes:
        side: "in" or "out".
        dim: the dimension that holds the units; None stands for channels (1) of convolutions and batch
            normalisations, the last one of everything else.
        size, repeat, tile, offset: where the units lie along it if they are not all of it, as in `Axis`; repeated
            entries count as samples.
        heads: whether all dimensions from the third on hold the units together (heads and their widths).
        paired: whether all other axes keep their basis, so that samples of two networks correspond one to one; else
            those axes are hidden spaces too (heads, token mixing) and have to be aligned first.
    """

    module: str
    side: str = "out"
    dim: int | None = None
    size: int | None = None
    repeat: int = 1
    tile: int = 1
    offset: int = 0
    heads: bool = False
    paired: bool = field(default=True, compare=False)

    def __str__(self) -> str:
        return f"{self.module}:{self.side}"


@dataclass(frozen=True)
class Step:
    """One elementwise ATen operation of a nonlinearity.

    `args` and `kwargs` hold plain values; a tuple `(k,)` stands for the result of step `k`, `(0,)` for the
    pre-activation.
    """

    operation: str
    args: tuple[Any, ...] = ()
    kwargs: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        return self.operation.partition(".")[0]


@dataclass(frozen=True)
class Space:
    """A basis shared by tensor axes.

    Attributes:
        name: the module that writes it, as `named_modules` spells it.
        size: units.
        writers, readers: parameter axes transformed by the out-map and by the in-map.
        symmetry: what may be applied without changing the network.
        pre, post: where the space is seen before and after its nonlinearity; equal for linear spaces, None where no
            module shows it (`before` and `after` raise then).
        scales: parameter axes that hold one gain per unit (normalisation gains, running variances, depthwise
            filters): they follow a map by its absolute values normalised per row, so that equal gains stay equal.
        sites: every place where the space is seen, in order; a residual stream has many.
        nonlinearity: what leads from `pre` to `post`, entry by entry; empty for the identity, None where that is no
            function of one number (gates, norms, learned slopes).
    """

    name: str
    size: int
    writers: tuple[Axis, ...] = ()
    readers: tuple[Axis, ...] = ()
    symmetry: Symmetry = Symmetry.PERMUTATION
    pre: Site | None = None
    post: Site | None = None
    scales: tuple[Axis, ...] = ()
    sites: tuple[Site, ...] = ()
    nonlinearity: tuple[Step, ...] | None = field(default=None, compare=False)

    @property
    def pinned(self) -> bool:
        """Whether the space must keep its basis."""
        return self.symmetry is Symmetry.PINNED

    @property
    def is_gauge(self) -> bool:
        """Whether the space is a freedom inside attention heads (which head, what queries and keys, or values and
        outputs agree on), not a layer that anybody would look at.
        """
        return self.symmetry is not Symmetry.PINNED and not _GAUGES.isdisjoint(self.name.split(".")[-2:])

    @property
    def before(self) -> Site:
        """Where the space is read before its nonlinearity; raises `SpaceMismatch` when no module shows it."""
        if self.pre is None:
            raise SpaceMismatch(
                f"space '{self.name}' ({self.size} units) is seen at no module's input or output; put an nn.Identity "
                "where it should be read, or leave it out"
            )
        return self.pre

    @property
    def after(self) -> Site:
        """Where the space is read after its nonlinearity (the same place when it has none); raises as `before`."""
        return self.post or self.before

    @property
    def whole_sites(self) -> tuple[Site, ...]:
        """Every module output where the whole space is seen; those whose samples are paired, where there are any."""
        found = tuple(site for site in self.sites if site.size is None and site.side == "out")
        return tuple(site for site in found if site.paired) or found


@dataclass(frozen=True)
class Layer:
    """An affine layer (`weight`, perhaps `bias`) that reads one space and writes another: the unit of the refit.

    `calls` counts how often the module ran on the example: more than one for shared layers, whose activations are those
    of all calls; none where only its weight is used (projections inside `nn.MultiheadAttention`): nothing to read.
    """

    module: str
    reads: str
    writes: str
    calls: int = 1


@dataclass(frozen=True)
class SpaceGraph:
    """Spaces and affine layers of a network in topological order; inputs and outputs are pinned spaces.

    `spaces.trace` builds one, `spaces.check` proves it. `warnings` names what tracing did not understand.
    """

    spaces: tuple[Space, ...]
    layers: tuple[Layer, ...] = ()
    warnings: tuple[str, ...] = field(default=(), compare=False)

    @cached_property
    def by_name(self) -> dict[str, Space]:
        """The spaces by their names."""
        return {space.name: space for space in self.spaces}

    @cached_property
    def by_parameter(self) -> dict[str, tuple[str, ...]]:
        """Names of the spaces that the axes of each parameter lie in."""
        found: dict[str, dict[str, None]] = {}
        for space in self.spaces:
            for axis in (*space.writers, *space.readers, *space.scales):
                found.setdefault(axis.parameter, {})[space.name] = None
        return {name: tuple(spaces) for name, spaces in found.items()}

    def __getitem__(self, name: str) -> Space:
        if name not in self.by_name:
            shown = (space.name for space in self.spaces if not space.is_gauge)
            raise SpaceMismatch(f"no space '{name}'; the network has: {', '.join(shown)}")
        return self.by_name[name]

    @property
    def hidden(self) -> tuple[Space, ...]:
        """The spaces an alignment may move."""
        return tuple(space for space in self.spaces if not space.pinned)

    @property
    def notes(self) -> tuple[str, ...]:
        """What cannot be read from activations, and why: spaces without a site, layers that never run by themselves."""
        found = []
        for space in self.hidden:
            if space.pre is None:
                found.append(f"space '{space.name}' is seen at no module's input or output: align it by weights")
            elif not space.pre.paired:
                found.append(f"space '{space.name}' is seen only beside other hidden spaces: align those first")
        for layer in self.layers:
            if layer.calls == 0:
                found.append(f"layer '{layer.module}' never runs by itself: its weight is left to the rule")
            elif layer.calls > 1:
                found.append(f"layer '{layer.module}' runs {layer.calls} times: its activations are those of all calls")
        return tuple(found)

    def to_frame(self) -> pd.DataFrame:
        """One row per space: name, units, symmetry, and how many parameter axes write and read it."""
        import pandas as pd

        rows = [(s.name, s.size, s.symmetry.value, len(s.writers), len(s.readers)) for s in self.spaces]
        return pd.DataFrame(rows, columns=["space", "units", "symmetry", "writers", "readers"])

    def _repr_html_(self) -> str:
        return self.to_frame().to_html(index=False)


def weakest(graphs: Sequence[SpaceGraph]) -> list[SpaceGraph]:
    """The graphs of networks of one architecture, each with what all of them allow.

    Symmetry may depend on values: gains that are all one in one network leave it rotations, trained ones permutations.
    Every space gets the largest symmetry contained in all; a space whose axes differ between the graphs is pinned.
    """
    if not graphs:
        return []
    places = [{space.name: (space.writers, space.readers, space.scales) for space in graph.spaces} for graph in graphs]
    agreed: dict[str, Symmetry] = {}
    for graph in graphs:
        for space in graph.spaces:
            known = all(where.get(space.name) == places[0].get(space.name) for where in places)
            symmetry = space.symmetry if known else Symmetry.PINNED
            agreed[space.name] = meet(agreed.get(space.name, symmetry), symmetry)
    return [
        replace(graph, spaces=tuple(replace(space, symmetry=agreed[space.name]) for space in graph.spaces))
        for graph in graphs
    ]
