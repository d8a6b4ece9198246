"""Handlers of convolutions, normalisations, reductions, pooling and fused attention."""

from __future__ import annotations

from typing import Any

import torch

from featalign.spaces.graph import Symmetry
from featalign.spaces.tracing.axes import Node, product, regroup, unite
from featalign.spaces.tracing.elementwise import uniform
from featalign.spaces.tracing.registry import Call, Dim, Dims, Value, broadcast, constrain_all, handles


def _moved(sizes: tuple[int, ...], old: Dims, kept: bool) -> Dims:
    """Spatial dimensions after a window passed over them: the old ones if nothing was mixed, else pinned ones."""
    if kept:
        return old
    constrain_all(old, Symmetry.PINNED)
    return tuple(Dim(size, Node(size, Symmetry.PINNED) if size > 1 else None) for size in sizes)


@handles("convolution", "_convolution", "convolution_overrideable")
def convolution(call: Call) -> Dims:
    """Channels are contracted within groups; positions are mixed unless the kernel is a point."""
    x, weight, bias, stride, padding = call.args[:5]
    transposed, groups = call.args[6], call.args[8]
    dims, kernel = call.dims(x), call.dims(weight)
    channels_in, written, read = dims[1], kernel[0], kernel[1]
    if transposed:
        written, read = kernel[1], kernel[0]
    for dim in kernel[2:]:
        dim.constrain(Symmetry.PINNED, "kernel")
    point = all(k.size == 1 for k in kernel[2:]) and set(stride) == {1} and set(padding) == {0}
    out = written.solid
    if groups == 1:
        if channels_in.size > 1:
            shared = unite(channels_in.solid, read.solid)
            if channels_in.node is None:
                shared.constrain(Symmetry.PERMUTATION)
        call.tracer.role([read], "reader")
    else:
        out = _grouped(call, channels_in, written, read, groups, transposed)
    if bias is not None:
        unite(out, call.dims(bias)[0].solid)
    size = call.out.shape[1]
    spatial = _moved(tuple(call.out.shape[2:]), dims[2:], point)
    call.tracer.role([written], "writer")
    return (dims[0], Dim(size, out if size > 1 else None), *spatial)


def _grouped(call: Call, x: Dim, written: Dim, read: Dim, groups: int, transposed: bool) -> Node:
    """Groups are units of their own (members share one basis across groups); depthwise filters are scales."""
    members = x.size // groups
    group, inside = regroup([x.solid], (groups, members))
    group.constrain(Symmetry.PERMUTATION, "groups" if members > 1 else "")
    if transposed:  # weight [in, out / groups, ...]: its first axis is that of the input
        unite(read.solid, x.solid)
        call.tracer.role([read], "reader")
        per_group = written.size
        out = Node(groups * per_group)
        first, rest = regroup([out], (groups, per_group))
        unite(group, first)
        unite(rest, written.solid)
        return out
    multiplier = written.size // groups
    first, _ = regroup([written.solid], (groups, multiplier))
    unite(group, first)
    if members > 1:
        unite(inside, read.solid)
        call.tracer.role([read], "reader")
    if multiplier == members == 1:
        call.tracer.role([written], "scale")
    return written.solid


def _affine(call: Call, channel: Dim, scales: tuple[Any, ...], shifts: tuple[Any, ...]) -> None:
    """Unite the parameters of a normalisation with the axis they belong to."""
    for tensor, role in [*((s, "scale") for s in scales), *((s, "writer") for s in shifts)]:
        if isinstance(tensor, torch.Tensor):
            own = call.dims(tensor)[-1]
            if own.node is not None and channel.node is not None:
                unite(own.node, channel.node)
            call.tracer.role([own], role)


@handles("native_batch_norm", "_native_batch_norm_legit_no_training", "_native_batch_norm_legit", "cudnn_batch_norm")
def batch_norm(call: Call) -> list[Dims]:
    """Per-channel affine map: parameters and running statistics follow the channel."""
    x, weight, bias, mean, variance = call.args[:5]
    dims = call.dims(x)
    dims[1].constrain(Symmetry.PERMUTATION)
    _affine(call, dims[1], (weight, variance), (bias, mean))
    return [dims]


@handles("_weight_norm_interface", "_weight_norm")
def weight_norm(call: Call) -> list[Dims]:
    """Rows of a weight brought to lengths of their own: the lengths are scales, directions turn with what they read."""
    direction, length, axis = *call.args[:2], call.arg(2, "dim", 0)
    dims, lengths = call.dims(direction), call.dims(length)
    for k, dim in enumerate(dims):
        dim.constrain(Symmetry.PERMUTATION if k == axis else Symmetry.ORTHOGONAL)
    unite(dims[axis].solid, lengths[axis].solid)
    call.tracer.role([lengths[axis]], "scale")
    return [dims, tuple(Dim(dim.size, dim.node) for dim in lengths)]


@handles("native_layer_norm")
def layer_norm(call: Call) -> list[Dims]:
    """Centring and a norm over the last axes: permutations remain."""
    x, shape, weight, bias = call.args[:4]
    dims = call.dims(x)
    constrain_all(dims[-len(shape) :], Symmetry.PERMUTATION)
    if len(shape) == 1:
        _affine(call, dims[-1], (weight,), (bias,))
    else:
        _affine_many(call, dims[-len(shape) :], (weight, bias))
    return [dims]


def _affine_many(call: Call, channels: Dims, parameters: tuple[Any, ...]) -> None:
    for tensor, role in zip(parameters, ("scale", "writer"), strict=True):
        if isinstance(tensor, torch.Tensor):
            own = call.dims(tensor)
            broadcast([channels, own])
            call.tracer.role(own, role)


@handles("_fused_rms_norm", "rms_norm")
def rms_norm(call: Call) -> list[Dims]:
    """A norm over the last axes: rotations remain where the gain is one number."""
    x, shape = call.args[:2]
    weight = call.arg(2, "weight")
    dims = call.dims(x)
    normed = dims[-len(shape) :]
    rotates = not isinstance(weight, torch.Tensor) or uniform(call.value(weight))
    constrain_all(normed, Symmetry.ORTHOGONAL if rotates else Symmetry.PERMUTATION)
    if isinstance(weight, torch.Tensor):
        _affine_many(call, normed, (weight, None))
    return [dims]


@handles("native_group_norm")
def group_norm(call: Call) -> list[Dims]:
    """Groups permute as units, members alike within every group."""
    x, weight, bias = call.args[:3]
    groups = call.args[6]
    dims = call.dims(x)
    channel = dims[1]
    if groups > 1 and channel.node is not None:
        group, inside = regroup([channel.node], (groups, channel.size // groups))
        group.constrain(Symmetry.PERMUTATION, "groups")
        inside.constrain(Symmetry.PERMUTATION, "members")
    channel.constrain(Symmetry.PERMUTATION)
    constrain_all(dims[2:], Symmetry.PERMUTATION)
    _affine(call, channel, (weight,), (bias,))
    return [dims]


@handles("mean", "sum", "amax", "amin", "var", "std", "linalg_vector_norm", "logsumexp", "var_mean", "any", "all")
def reduction(call: Call) -> Dims | list[Dims]:
    """Reduced axes keep permutations (norms: rotations); linear reductions leave the other axes as they are."""
    value: Value = call.tracer.value(call.args[0])
    norm = value.square and call.name in ("mean", "sum")
    position = 2 if call.name == "linalg_vector_norm" else 1
    over = call.arg(position, "dim")
    if not over and over != 0:  # absent or empty: everything
        over = range(len(value.dims))
    axes = {k % len(value.dims) for k in ([over] if isinstance(over, int) else over)} if value.dims else set()
    if call.name == "linalg_vector_norm":
        norm = call.arg(1, "ord", 2) == 2
    for k, dim in enumerate(value.dims):
        if k in axes:
            dim.constrain(Symmetry.ORTHOGONAL if norm else Symmetry.PERMUTATION)
        elif norm or call.name not in ("mean", "sum"):
            dim.constrain(Symmetry.PERMUTATION)
    first = call.out[0] if isinstance(call.out, (tuple, list)) else call.out
    keep = first.dim() == len(value.dims)
    dims = tuple(Dim(1) if k in axes else d for k, d in enumerate(value.dims) if keep or k not in axes)
    return [dims, dims] if isinstance(call.out, (tuple, list)) else dims


@handles("_softmax", "_log_softmax", "softmax", "log_softmax", "cumsum", "_safe_softmax")
def softmax(call: Call) -> Dims:
    """Normalised exponentials: permutations of every axis. A cumulative sum pins its axis."""
    dims = constrain_all(call.dims(call.args[0]), Symmetry.PERMUTATION)
    if call.name == "cumsum":
        dims[call.arg(1, "dim")].constrain(Symmetry.PINNED)
    return dims


@handles("max_pool2d_with_indices", "max_pool2d", "max_pool3d_with_indices", "adaptive_max_pool2d")
def max_pool(call: Call) -> list[Dims]:
    """Windows mix positions; channels keep permutations with positive scaling."""
    return [window(call)[0]] * 2


@handles("avg_pool2d", "avg_pool1d", "avg_pool3d", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "upsample_nearest2d")
@handles("upsample_bilinear2d", "upsample_bicubic2d", "upsample_nearest1d", "_upsample_bilinear2d_aa")
@handles("reflection_pad1d", "reflection_pad2d", "replication_pad1d", "replication_pad2d", "replication_pad3d")
def window(call: Call) -> list[Dims]:
    """Windows mix positions linearly; channels pass."""
    dims, out = call.dims(call.args[0]), call.out[0] if isinstance(call.out, tuple) else call.out
    spatial = 1 if "1d" in call.name else 3 if "3d" in call.name else 2
    if call.name.startswith("max") or "max" in call.name:
        constrain_all(dims, Symmetry.SCALED_PERMUTATION)
    return [(*dims[:-spatial], *_moved(tuple(out.shape[-spatial:]), dims[-spatial:], False))]


def _repeated(shared: Dim, wanted: Dim) -> Dim:
    """Key-value heads that serve several query heads each: a product with a constant axis."""
    if shared.node is None or shared.size == wanted.size or wanted.size % shared.size:
        return shared
    members = Node(wanted.size // shared.size, Symmetry.PERMUTATION, "heads")
    return Dim(wanted.size, product([shared.node, members]))


@handles("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention")
@handles("_scaled_dot_product_efficient_attention", "scaled_dot_product_attention")
@handles("_scaled_dot_product_attention_math", "_scaled_dot_product_attention_math_for_mps")
def attention(call: Call) -> list[Dims]:
    """Heads are units; queries and keys keep inner products; values pass through linearly."""
    queries, keys, values = (call.dims(tensor) for tensor in call.args[:3])
    shared = broadcast([keys[:-2], values[:-2]])
    constrain_all(shared, Symmetry.PERMUTATION)
    heads = broadcast([queries[:-2], tuple(map(_repeated, shared, queries[:-2]))])
    for dim in heads:
        dim.constrain(Symmetry.PERMUTATION, "heads")
    if keys[-1].size > 1:
        unite(queries[-1].solid, keys[-1].solid)
        constrain_all((queries[-1], keys[-1]), Symmetry.ORTHOGONAL, "qk")
    tokens = broadcast([keys[-2:-1], values[-2:-1]])
    constrain_all((*tokens, queries[-2]), Symmetry.PERMUTATION)
    values[-1].constrain(Symmetry.LINEAR, "ov")
    mask = call.arg(3, "attn_mask")
    for candidate in (mask, call.kwargs.get("attn_bias")):
        if isinstance(candidate, torch.Tensor):
            constrain_all(broadcast([(*heads, queries[-2], *tokens), call.dims(candidate)]), Symmetry.PERMUTATION)
    return [(*heads, Dim(queries[-2].size, queries[-2].node), Dim(values[-1].size, values[-1].node))]
