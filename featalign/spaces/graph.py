"""Spaces: which tensor axes share one basis.

A *space* is a set of tensor axes that must be expressed in the same basis: a hidden layer, or a whole residual stream.
A tensor *writes* a space through its output axis and *reads* one through its input axis.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from torch import nn

from featalign.errors import SpaceMismatch

if TYPE_CHECKING:
    import pandas as pd

    from featalign.spaces.check import Check


class Symmetry(StrEnum):
    """The largest group of maps of a space that leaves the network's function unchanged."""

    PINNED = "pinned"  # inputs, outputs and whatever tracing did not understand: identity only
    PERMUTATION = "permutation"  # elementwise nonlinearity, batch normalisation: permutations
    SCALED_PERMUTATION = "scaled-permutation"  # ReLU: permutations with positive scaling
    ORTHOGONAL = "orthogonal"  # residual stream under RMSNorm: rotations
    LINEAR = "linear"  # no nonlinearity: any invertible map


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
    """

    module: str
    side: str = "out"
    dim: int | None = None
    size: int | None = None
    repeat: int = 1
    tile: int = 1
    offset: int = 0

    def __str__(self) -> str:
        return f"{self.module}:{self.side}"


@dataclass(frozen=True)
class Space:
    """A basis shared by tensor axes.

    Attributes:
        name: the module that writes it, as `named_modules` spells it.
        size: units.
        writers, readers: parameter axes transformed by the out-map and by the in-map.
        symmetry: what may be applied without changing the network.
        pre, post: where the space is seen before and after its nonlinearity; equal for linear spaces.
        scales: parameter axes that hold one gain per unit (normalisation gains, running variances, depthwise
            filters): they follow a map by its absolute values normalised per row, so that equal gains stay equal.
        sites: every place where the space is seen, in order; a residual stream has many.
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

    @property
    def pinned(self) -> bool:
        """Whether the space must keep its basis."""
        return self.symmetry is Symmetry.PINNED


@dataclass(frozen=True)
class Layer:
    """An affine layer (`weight`, perhaps `bias`) that reads one space and writes another: the unit of the refit."""

    module: str
    reads: str
    writes: str


@dataclass(frozen=True)
class SpaceGraph:
    """Spaces and affine layers of a network in topological order; inputs and outputs are pinned spaces."""

    spaces: tuple[Space, ...]
    layers: tuple[Layer, ...] = ()
    warnings: tuple[str, ...] = field(default=(), compare=False)
    module: nn.Module | None = field(default=None, compare=False, repr=False)
    example: Any = field(default=None, compare=False, repr=False)

    @classmethod
    def trace(cls, module: nn.Module, example_input: Any, *, partial: bool = False) -> SpaceGraph:
        """Find the spaces of any module by running it once on an example.

        Args:
            example_input: a tensor `[samples, ...]`, a tuple of positional or a mapping of keyword arguments.
            partial: accept control flow that depends on the data and trace the branch the example takes.

        What is not understood keeps its basis and is named in `warnings`. Raises `TraceError` when the module fails
        on the example or reads its own data.
        """
        from featalign.spaces.assemble import trace

        return trace(module, example_input, partial)

    def check(
        self,
        module: nn.Module | None = None,
        example_input: Any = None,
        *,
        tolerance: float = 1e-5,
        seed: int = 0,
    ) -> Check:
        """Apply a random admissible transform to every hidden space and compare outputs; a traced graph brings its
        module and example. Raises `TraceError` when outputs move by more than `tolerance` relative.
        """
        from featalign.spaces.check import check

        return check(self, module, example_input, tolerance, seed)

    def __getitem__(self, name: str) -> Space:
        for space in self.spaces:
            if space.name == name:
                return space
        raise SpaceMismatch(f"no space '{name}'; the network has: {', '.join(s.name for s in self.spaces)}")

    @property
    def hidden(self) -> tuple[Space, ...]:
        """The spaces an alignment may move."""
        return tuple(space for space in self.spaces if not space.pinned)

    def to_frame(self) -> pd.DataFrame:
        """One row per space: name, units, symmetry, and how many parameter axes write and read it."""
        import pandas as pd

        rows = [(s.name, s.size, s.symmetry.value, len(s.writers), len(s.readers)) for s in self.spaces]
        return pd.DataFrame(rows, columns=["space", "units", "symmetry", "writers", "readers"])

    def _repr_html_(self) -> str:
        return self.to_frame().to_html(index=False)
