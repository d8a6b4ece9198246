"""Handlers of matrix products."""

from __future__ import annotations

from featalign.spaces.graph import Symmetry
from featalign.spaces.tracing.axes import unite
from featalign.spaces.tracing.registry import Call, Dim, Dims, Value, broadcast, constrain_all, handles


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
        constrain_all((inner_left, inner_right), Symmetry.ORTHOGONAL, "qk")  # two axes still where both are pinned
