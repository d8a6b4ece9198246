"""Handlers of elementwise functions, sums and products."""

from __future__ import annotations

from typing import Any

import torch

from featalign.spaces.graph import Symmetry
from featalign.spaces.tracing.axes import unite
from featalign.spaces.tracing.registry import Call, Dims, Value, broadcast, constrain_all, handles, merge_origins


@handles("detach", "alias", "clone", "contiguous", "_to_copy", "lift_fresh", "neg", "positive", "dropout", "to")
def same(call: Call) -> Dims:
    """Functions that commute with every linear map."""
    return call.dims(call.args[0])


@handles("relu", "abs")
def homogeneous(call: Call) -> Dims:
    """Elementwise and positively homogeneous: permutations with positive scaling remain."""
    return constrain_all(call.dims(call.args[0]), Symmetry.SCALED_PERMUTATION)


@handles("leaky_relu", "prelu", "_prelu_kernel", "rrelu_with_noise")
def leaky(call: Call) -> Dims:
    """Leaky ReLU is homogeneous; a learned slope per unit is a scale."""
    dims = constrain_all(call.dims(call.args[0]), Symmetry.SCALED_PERMUTATION)
    slope = call.arg(1, "weight") if call.name != "rrelu_with_noise" else None
    if isinstance(slope, torch.Tensor) and slope.numel() > 1:
        slopes = call.dims(slope)
        call.tracer.role(slopes, "scale")
        if len(slopes) == 1 and len(dims) > 1:
            unite(dims[1].solid, slopes[0].solid)
        else:
            broadcast([dims, slopes])
    return dims


@handles("hardswish")
def elementwise(call: Call) -> Dims:
    """Any other elementwise function: permutations remain."""
    rows = [call.dims(tensor) for tensor in call.tensors]
    dims = constrain_all(broadcast(rows), Symmetry.PERMUTATION)
    return merge_origins(dims, rows) if all(call.value(t).weight for t in call.tensors) else dims


@handles("log_sigmoid_forward")
def with_buffer(call: Call) -> list[Dims]:
    """An elementwise function that returns a buffer for its gradient beside the result."""
    return [elementwise(call)] * 2


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
