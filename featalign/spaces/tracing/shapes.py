"""Handlers of operations that move entries without mixing them: reshape, permute, slice, concatenate, pad, index."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch

from featalign.spaces.graph import Symmetry
from featalign.spaces.tracing.axes import Node, concatenation, divide, product, regroup
from featalign.spaces.tracing.registry import Call, Dim, Dims, broadcast, constrain_all, handles, merge_origins


def _groups(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Smallest consecutive groups of dimensions with equal products; ones join no group."""
    old = [k for k, size in enumerate(before) if size != 1]
    new = [k for k, size in enumerate(after) if size != 1]
    groups = []
    while old:
        left, right = [old.pop(0)], [new.pop(0)]
        while (a := prod(before[k] for k in left)) != (b := prod(after[k] for k in right)):
            left.append(old.pop(0)) if a < b else right.append(new.pop(0))
        groups.append((left, right))
    return groups


@handles("view", "_unsafe_view", "reshape", "_reshape_alias", "flatten", "unflatten", "squeeze", "unsqueeze")
def reshape(call: Call) -> Dims:
    """Row-major regrouping of dimensions."""
    dims, sizes = call.dims(call.args[0]), call.out.shape
    if call.name == "view" and isinstance(call.args[1], torch.dtype):
        return constrain_all(dims, Symmetry.PINNED)
    result = [Dim(size) for size in sizes]
    for left, right in _groups([dim.size for dim in dims], sizes):
        origins = frozenset().union(*(dims[k].origins for k in left))
        if len(left) == len(right) == 1:
            result[right[0]] = dims[left[0]]
        elif all(dims[k].node is None for k in left):
            for k in right:
                result[k] = Dim(sizes[k], None, origins)
        else:
            nodes = regroup([dims[k].solid for k in left], [sizes[k] for k in right])
            for k, node in zip(right, nodes, strict=True):
                result[k] = Dim(sizes[k], node, origins)
    return tuple(result)


@handles("permute")
def permute(call: Call) -> Dims:
    """Dimensions in another order."""
    dims = call.dims(call.args[0])
    return tuple(dims[k] for k in call.args[1])


@handles("t", "transpose", "numpy_T", "swapaxes")
def transpose(call: Call) -> Dims:
    """Two dimensions exchanged."""
    dims = list(call.dims(call.args[0]))
    if len(dims) > 1:
        i, j = call.args[1:3] if call.name in ("transpose", "swapaxes") else (0, 1)
        dims[i], dims[j] = dims[j], dims[i]
    return tuple(dims)


@handles("expand", "broadcast_to")
def expand(call: Call) -> Dims:
    """New sizes where the tensor was of size one: constant along those."""
    dims, sizes = call.dims(call.args[0]), call.out.shape
    padded = (Dim(1),) * (len(sizes) - len(dims)) + dims
    return tuple(dim if dim.size == size else Dim(size) for dim, size in zip(padded, sizes, strict=True))


@handles("as_strided")
def restride(call: Call) -> Dims | None:
    """Other strides for the same shape (channels last); anything else is not understood."""
    return call.dims(call.args[0]) if call.out.shape == call.args[0].shape else None


@handles("repeat")
def repeat(call: Call) -> Dims:
    """Copies along dimensions: a product of a constant axis and the old one."""
    dims, counts = call.dims(call.args[0]), call.args[1]
    padded = (Dim(1),) * (len(counts) - len(dims)) + dims
    result = []
    for dim, count in zip(padded, counts, strict=True):
        if count == 1 or dim.node is None:
            result.append(dim if count == 1 else Dim(dim.size * count))
        else:
            dim.node.pin()
            result.append(Dim(dim.size * count, Node(dim.size * count, Symmetry.PINNED)))
    return tuple(result)


def _pieces(call: Call, axis: int, sizes: Sequence[int]) -> list[Dims]:
    dims = call.dims(call.args[0])
    dim = dims[axis]
    nodes: Sequence[Node | None] = [None] * len(sizes)
    if dim.node is not None:
        nodes = divide(dim.node, sizes)
    result = []
    for node, size in zip(nodes, sizes, strict=True):
        row = list(dims)
        row[axis] = Dim(size, node if size > 1 else None, dim.origins)
        result.append(tuple(row))
    return result


@handles("slice", "narrow")
def take_slice(call: Call) -> Dims:
    """A range of one dimension; ranges with a step pin it."""
    axis = call.arg(1, "dim", 0) % len(call.out.shape)
    dims = call.dims(call.args[0])
    size, length = dims[axis].size, call.out.shape[axis]
    if length == size:
        return dims
    start = call.arg(2, "start", 0) or 0
    start = min(start + size if start < 0 else start, size)
    if call.arg(4, "step", 1) != 1 and call.name == "slice":
        dims[axis].constrain(Symmetry.PINNED)
        pinned = Dim(length, Node(length, Symmetry.PINNED), dims[axis].origins)
        return (*dims[:axis], pinned, *dims[axis + 1 :])
    return _pieces(call, axis, (start, length, size - start - length))[1]


@handles("split", "split_with_sizes", "chunk")
def split(call: Call) -> list[Dims]:
    """Consecutive pieces of one dimension."""
    axis = call.arg(2, "dim", 0) % len(call.args[0].shape)
    return _pieces(call, axis, [piece.shape[axis] for piece in call.out])


@handles("glu")
def gated(call: Call) -> Dims:
    """The first half of a dimension times a gate made of the second: both share one basis."""
    axis = call.arg(1, "dim", -1) % len(call.out.shape)
    size = call.out.shape[axis]
    return constrain_all(broadcast(_pieces(call, axis, (size, size))), Symmetry.PERMUTATION)


@handles("pixel_shuffle", "pixel_unshuffle", "channel_shuffle")
def shuffle(call: Call) -> Dims:
    """Channels to positions and back, or across groups: the positions inside a patch are a factor that is pinned."""
    dims, out, factor = call.dims(call.args[0]), call.out.shape, call.args[1]
    axis = 1 if call.name == "channel_shuffle" else len(dims) - 3
    channel, rest = dims[axis], dims[axis + 1 :]
    if call.name == "channel_shuffle":
        groups, members = regroup([channel.solid], (factor, channel.size // factor))
        return (*dims[:axis], Dim(channel.size, product([members, groups])), *rest)
    constrain_all(rest, Symmetry.PINNED)
    if call.name == "pixel_shuffle":
        channels, inside = regroup([channel.solid], (out[axis], factor * factor))
        inside.pin()
    else:
        channels = product([channel.solid, Node(factor * factor, Symmetry.PINNED)])
    positions = tuple(Dim(size, Node(size, Symmetry.PINNED) if size > 1 else None) for size in out[axis + 1 :])
    return (*dims[:axis], Dim(out[axis], channels if out[axis] > 1 else None), *positions)


@handles("select", "unbind")
def select(call: Call) -> Dims | list[Dims]:
    """One entry of a dimension (or each in turn): that dimension must keep its basis."""
    axis = call.arg(1, "dim", 0) % len(call.args[0].shape)
    dims = call.dims(call.args[0])
    dims[axis].constrain(Symmetry.PINNED)
    rest = (*dims[:axis], *dims[axis + 1 :])
    return [rest] * len(call.out) if call.name == "unbind" else rest


@handles("cat", "concat", "stack")
def concatenate(call: Call) -> Dims:
    """Tensors one after another along a dimension; the others meet as in a sum."""
    tensors = [t for t in call.args[0] if t.numel() or t.dim() > 1]
    axis = call.arg(1, "dim", 0) % len(call.out.shape)
    rows = [call.dims(tensor) for tensor in tensors]
    if call.name == "stack":
        dims = broadcast(rows)
        fresh = Dim(len(tensors), Node(len(tensors), Symmetry.PINNED))
        return (*dims[:axis], fresh, *dims[axis:])
    joined = concatenation([row[axis].solid for row in rows])
    for row in rows:  # a piece that is constant along a shared axis leaves it permutations only
        for k, dim in enumerate(row):
            if k != axis and dim.node is None and dim.size > 1:
                for other in rows:
                    other[k].constrain(Symmetry.PERMUTATION)
    met = broadcast([(*row[:axis], Dim(1), *row[axis + 1 :]) for row in rows])
    result = (*met[:axis], Dim(call.out.shape[axis], joined), *met[axis + 1 :])
    return merge_origins(result, rows) if all(call.value(t).weight for t in tensors) else result


@handles("constant_pad_nd", "pad")
def pad(call: Call) -> Dims:
    """Constant padding appends new units to a dimension."""
    dims, amounts, value = list(call.dims(call.args[0])), call.args[1], call.arg(2, "value", 0) or 0
    for k in range(len(amounts) // 2):
        front, back = amounts[2 * k], amounts[2 * k + 1]
        axis = len(dims) - 1 - k
        if front or back:
            old = dims[axis]
            if min(front, back) < 0 or old.node is None or old.node.pinned:
                old.constrain(Symmetry.PINNED)
                node = Node(call.out.shape[axis], Symmetry.PINNED)
            else:
                node = concatenation([Node(front), old.node, Node(back)])
            dims[axis] = Dim(call.out.shape[axis], node)
    if value:
        constrain_all(tuple(dims), Symmetry.PERMUTATION)
    return tuple(dims)


@handles("embedding", "index_select")
def lookup(call: Call) -> Dims:
    """Rows of a table: the table's first axis keeps its basis, its second is written."""
    if call.name == "index_select":
        table, axis, index = call.args
    else:
        (table, index), axis = call.args[:2], 0
    dims = call.dims(table)
    call.tracer.role([*dims[:axis], *dims[axis + 1 :]], "writer")
    dims[axis].constrain(Symmetry.PINNED, "rows")
    result = (*dims[:axis], *constrain_all(call.dims(index), Symmetry.PINNED), *dims[axis + 1 :])
    return tuple(Dim(dim.size, dim.node) for dim in result)


@handles("index", "_unsafe_index")
def index(call: Call) -> Dims | None:
    """Advanced indexing of consecutive dimensions: those are pinned, the others pass."""
    dims = call.dims(call.args[0])
    indices = list(call.args[1]) + [None] * (len(dims) - len(call.args[1]))
    used = [k for k, entry in enumerate(indices) if entry is not None]
    if any(indices[k].dtype in (torch.bool, torch.uint8) for k in used) or used != list(range(used[0], used[-1] + 1)):
        return None
    for k in used:
        dims[k].constrain(Symmetry.PINNED)
    met = constrain_all(broadcast([call.dims(indices[k]) for k in used]), Symmetry.PINNED)
    result = (*dims[: used[0]], *met, *dims[used[-1] + 1 :])
    if len(result) != len(call.out.shape):
        return None
    return tuple(Dim(size, dim.node) for dim, size in zip(result, call.out.shape, strict=True))
