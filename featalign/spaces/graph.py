"""Spaces: which tensor axes share one basis.

A *space* is a set of tensor axes that must be expressed in the same basis: a hidden layer, or a whole residual stream.
A tensor *writes* a space through its output axis and *reads* one through its input axis.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from featalign.errors import SpaceMismatch


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
    """Where activations are read: the input or the output of a named submodule (`""` is the module itself)."""

    module: str
    side: str = "out"  # "in" or "out"

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
    """

    name: str
    size: int
    writers: tuple[Axis, ...] = ()
    readers: tuple[Axis, ...] = ()
    symmetry: Symmetry = Symmetry.PERMUTATION
    pre: Site | None = None
    post: Site | None = None

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

    def __getitem__(self, name: str) -> Space:
        for space in self.spaces:
            if space.name == name:
                return space
        raise SpaceMismatch(f"no space '{name}'; the network has: {', '.join(s.name for s in self.spaces)}")

    @property
    def hidden(self) -> tuple[Space, ...]:
        """The spaces an alignment may move."""
        return tuple(space for space in self.spaces if not space.pinned)
