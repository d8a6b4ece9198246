"""The registry of handlers, and what a handler sees of the operation it describes.

A handler says what one ATen operation does to the bases of its tensors' axes: which axes it unites, what symmetry it
leaves them, and the axes of its result. One function per kind of operation; a new operation is one decorated function.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from featalign.spaces.graph import Symmetry
from featalign.spaces.tracing.axes import Node, unite

Origin = tuple[str, int]  # a parameter (or buffer) and a dimension of it


@dataclass(frozen=True)
class Dim:
    """One dimension of a traced tensor.

    Attributes:
        size: entries.
        node: its axis, or None where the tensor is constant along it (size one, broadcast, uniform constants).
        origins: the parameter dimensions it consists of; empty for activations.
    """

    size: int
    node: Node | None = None
    origins: frozenset[Origin] = frozenset()

    def constrain(self, symmetry: Symmetry, label: str = "") -> Dim:
        """Allow no more than `symmetry`; returns the dimension."""
        if self.node is not None:
            self.node.constrain(symmetry, label)
        return self

    @property
    def solid(self) -> Node:
        """The axis; a constant dimension gets a fresh one (constants are unmoved by permutations only)."""
        return self.node if self.node is not None else Node(self.size, Symmetry.PERMUTATION)


Dims = tuple[Dim, ...]


@dataclass(eq=False)
class Value:
    """What is known of a tensor: its dimensions, whether it holds parameters only, and deferred squares."""

    tensor: torch.Tensor
    dims: Dims
    weight: bool = False
    tainted: bool = True
    square: bool = False


class Recorder(Protocol):
    """What a handler may ask of the tracer."""

    def value(self, tensor: torch.Tensor) -> Value: ...

    def role(self, dims: Sequence[Dim], role: str) -> None: ...

    def warn(self, message: str) -> None: ...


@dataclass
class Call:
    """One operation: its name without `aten::` and a trailing underscore, arguments and result."""

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any
    tracer: Recorder
    pointwise: bool = False
    tensors: list[torch.Tensor] = field(default_factory=list)
    operation: str = ""  # name and overload

    def arg(self, position: int, name: str, default: Any = None) -> Any:
        """An argument given by position or by name."""
        return self.args[position] if position < len(self.args) else self.kwargs.get(name, default)

    def value(self, tensor: torch.Tensor) -> Value:
        """What is known of a tensor; squares are no longer deferred once somebody looks."""
        value = self.tracer.value(tensor)
        if value.square:
            for dim in value.dims:
                dim.constrain(Symmetry.PERMUTATION)
            value.square = False
        return value

    def dims(self, tensor: torch.Tensor) -> Dims:
        """Dimensions of a tensor."""
        return self.value(tensor).dims


Handler = Callable[[Call], Any]
HANDLERS: dict[str, Handler] = {}


def handles(*names: str) -> Callable[[Handler], Handler]:
    """Decorator that files a handler under ATen names (no overload, no trailing underscore).

    The handler gets a `Call` and returns the `Dims` of the result, or a list of them for several results.
    """

    def register(handler: Handler) -> Handler:
        for name in names:
            HANDLERS[name] = handler
        return handler

    return register


def pinned_dims(tensor: torch.Tensor) -> Dims:
    """Dimensions that must keep their basis."""
    return tuple(Dim(size, Node(size, Symmetry.PINNED) if size > 1 else None) for size in tensor.shape)


def broadcast(rows: Sequence[Dims]) -> Dims:
    """Unite dimensions that meet when tensors are broadcast together; constant ones give way. Drops origins."""
    rank = max(len(row) for row in rows)
    result = []
    for k in range(-rank, 0):
        meeting = [row[k] for row in rows if len(row) >= -k]
        nodes = [dim.node for dim in meeting if dim.node is not None]
        for other in nodes[1:]:
            unite(nodes[0], other)
        result.append(Dim(max((dim.size for dim in meeting), key=lambda s: (s != 1, s)), nodes[0] if nodes else None))
    return tuple(result)


def merge_origins(dims: Dims, rows: Sequence[Dims]) -> Dims:
    """The same dimensions with the origins of all operands: for results that hold parameters only."""
    result = []
    for k, dim in enumerate(dims, start=-len(dims)):
        origins = frozenset().union(*(row[k].origins for row in rows if len(row) >= -k))
        result.append(Dim(dim.size, dim.node, origins))
    return tuple(result)


def constrain_all(dims: Dims, symmetry: Symmetry, label: str = "") -> Dims:
    """Constrain every dimension."""
    for dim in dims:
        dim.constrain(symmetry, label)
    return dims
