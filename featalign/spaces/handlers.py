"""The registry of handlers, and those of affine layers and elementwise functions.

A handler says what one ATen operation does to the bases of its tensors' axes: which axes it unites, what symmetry it
leaves them, and the axes of its result. One function per kind of operation; a new operation is one decorated function.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from featalign.spaces.axes import Node, unite
from featalign.spaces.graph import Symmetry

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


def constrain_all(dims: Dims, symmetry: Symmetry) -> Dims:
    """Constrain every dimension."""
    for dim in dims:
        dim.constrain(symmetry)
    return dims


@handles("detach", "alias", "clone", "contiguous", "_to_copy", "lift_fresh", "neg", "positive", "dropout", "to")
def same(call: Call) -> Dims:
    """Functions that commute with every linear map."""
    return call.dims(call.args[0])


@handles("relu", "abs")
def homogeneous(call: Call) -> Dims:
    """Elementwise and positively homogeneous: permutations with positive scaling remain."""
    return constrain_all(call.dims(call.args[0]), Symmetry.SCALED_PERMUTATION)


@handles("leaky_relu", "prelu", "_prelu_kernel")
def leaky(call: Call) -> Dims:
    """Leaky ReLU is homogeneous; a learned slope per unit is a scale."""
    dims = constrain_all(call.dims(call.args[0]), Symmetry.SCALED_PERMUTATION)
    slope = call.arg(1, "weight")
    if isinstance(slope, torch.Tensor) and slope.numel() > 1:
        slopes = call.dims(slope)
        call.tracer.role(slopes, "scale")
        if len(slopes) == 1 and len(dims) > 1:
            unite(dims[1].solid, slopes[0].solid)
        else:
            broadcast([dims, slopes])
    return dims


def elementwise(call: Call) -> Dims:
    """Any other elementwise function: permutations remain."""
    rows = [call.dims(tensor) for tensor in call.tensors]
    dims = constrain_all(broadcast(rows), Symmetry.PERMUTATION)
    return merge_origins(dims, rows) if all(call.value(t).weight for t in call.tensors) else dims


def _is_zero(operand: Any) -> bool:
    return not bool(torch.as_tensor(operand).any())


@handles("add", "sub", "rsub")
def addition(call: Call) -> Dims:
    """Sums commute with every linear map, unless one term is constant along an axis and not zero."""
    a, b = call.args[0], call.args[1]
    rows = [call.dims(term) for term in (a, b) if isinstance(term, torch.Tensor)]
    dims = broadcast(rows)
    for term, row in zip([t for t in (a, b) if isinstance(t, torch.Tensor)], rows, strict=True):
        for k, dim in enumerate(dims, start=-len(dims)):
            constant = len(row) < -k or row[k].node is None
            if constant and dim.node is not None and not _is_zero(term):
                dim.constrain(Symmetry.PERMUTATION)
    if len(rows) == 1 and not _is_zero(b if isinstance(a, torch.Tensor) else a):
        constrain_all(dims, Symmetry.PERMUTATION)
    weights = all(call.value(t).weight for t in (a, b) if isinstance(t, torch.Tensor))
    return merge_origins(dims, rows) if weights else dims


@handles("mul", "div")
def multiplication(call: Call) -> Dims:
    """Products: by a scalar linear, by a parameter a scale per unit, of two activations permutations only."""
    a, b = call.args[0], call.args[1]
    operands = [t for t in (a, b) if isinstance(t, torch.Tensor)]
    if len(operands) == 2 and operands[0] is operands[1] and call.name == "mul":
        return square(call)
    values = [call.value(tensor) for tensor in operands]
    dims = broadcast([value.dims for value in values])
    weights = all(value.weight for value in values)
    for k in range(-len(dims), 0):
        moving = [v for v in values if len(v.dims) >= -k and v.dims[k].node is not None]
        divides = call.name == "div" and len(values) == 2 and values[1] in moving
        for value in moving:
            if value.weight and not weights and len(moving) > 1:
                call.tracer.role([value.dims[k]], "scale")
        if (len(moving) > 1 and not any(uniform(v) for v in moving)) or divides:
            dims[k].constrain(Symmetry.PERMUTATION)
    return merge_origins(dims, [value.dims for value in values]) if weights else dims


def uniform(value: Value) -> bool:
    """Whether a parameter has one value everywhere, so that it scales every basis alike."""
    return value.weight and bool((value.tensor == value.tensor.reshape(-1)[0]).all())


@handles("pow")
def power(call: Call) -> Dims:
    """Squares are deferred: their mean over an axis is a norm, which rotations keep."""
    if isinstance(call.args[0], torch.Tensor) and not isinstance(call.args[1], torch.Tensor) and call.args[1] == 2:
        return square(call)
    return elementwise(call)


def square(call: Call) -> Dims:
    """Elementwise square, whose constraint waits for what reads it (`Call.value`)."""
    return call.dims(call.args[0])


@handles("mm", "bmm", "addmm", "baddbmm", "mv", "addmv", "dot")
def matrix_product(call: Call) -> Dims:
    """Contraction: the parameter's contracted axis reads, its free axis writes; two activations keep inner products."""
    bias, (a, b) = (call.args[0], call.args[1:3]) if call.name.startswith(("add", "badd")) else (None, call.args[:2])
    left, right = call.value(a), call.value(b)
    batch = broadcast([left.dims[:-2], right.dims[:-2]]) if call.name in ("bmm", "baddbmm") else ()
    constrain_all(batch, Symmetry.PERMUTATION)
    row = left.dims[-2:-1] if len(left.dims) > 1 else ()
    column = right.dims[-1:] if len(right.dims) > 1 else ()
    inner_left, inner_right = left.dims[-1], right.dims[-1] if len(right.dims) == 1 else right.dims[-2]
    contract(call, left, right, inner_left, inner_right)
    if not (left.weight or right.weight):
        for dim in batch:
            dim.constrain(Symmetry.PERMUTATION, "heads")
            column = tuple(free.constrain(Symmetry.LINEAR, "ov") for free in column)
    dims = (*batch, *row, *column)
    if not (left.weight and right.weight):
        dims = tuple(Dim(dim.size, dim.node) for dim in dims)
    if bias is not None:
        broadcast([dims, call.dims(bias)])
    return dims


def contract(call: Call, left: Value, right: Value, inner_left: Dim, inner_right: Dim) -> None:
    """Unite the contracted dimensions of two operands and give them their roles."""
    if inner_left.size == 1:
        return
    shared = unite(inner_left.solid, inner_right.solid)
    if inner_left.node is None or inner_right.node is None:
        shared.constrain(Symmetry.PERMUTATION)
    for value, inner in ((left, inner_left), (right, inner_right)):
        if value.weight and not (left.weight and right.weight):
            call.tracer.role([dim for dim in value.dims if dim is not inner], "writer")
    if right.weight:  # of two parameters the first is the data (learned queries)
        call.tracer.role([inner_right], "reader")
    elif left.weight:
        call.tracer.role([inner_left], "reader")
    else:
        shared.constrain(Symmetry.ORTHOGONAL, "qk")
