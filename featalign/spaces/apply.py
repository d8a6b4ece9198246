"""Maps applied to every tensor axis of a network: the one place where weights move between bases."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

import torch
from torch import nn

from featalign.errors import SpaceMismatch
from featalign.spaces.graph import Axis, Space, SpaceGraph


class MapLike(Protocol):
    """What is applied to a space: `out [m, n]`, `into [n, m]` and perhaps a `shift [m]` (see `align.SpaceMap`)."""

    @property
    def out(self) -> torch.Tensor: ...

    @property
    def into(self) -> torch.Tensor: ...

    @property
    def shift(self) -> torch.Tensor | None: ...


def gains(out: torch.Tensor) -> torch.Tensor:
    """The map `[m, n]` that per-unit gains follow: `|O|` with rows that sum to one.

    It equals `O` for plans, permutes under a permutation, ignores positive scaling and keeps equal gains equal under
    rotations.
    """
    weights = out.abs()
    return weights / weights.sum(1, keepdim=True).clamp_min(1e-30)


@dataclass(frozen=True)
class Piece:
    """A map along one axis of one tensor: what `moved` applies."""

    space: str
    axis: Axis
    size: int
    matrix: torch.Tensor


Pieces = dict[tuple[str, int], list[Piece]]


def pieces_of(graph: SpaceGraph, maps: Mapping[str, MapLike]) -> Pieces:
    """The maps laid out by parameter and dimension; raises `SpaceMismatch` for maps that do not fit their space."""
    pieces: Pieces = defaultdict(list)
    for name, space_map in maps.items():
        space = graph[name]
        _require_fit(space, space_map)
        roles = (
            (space.writers, space_map.out),
            (space.readers, space_map.into.T),
            (space.scales, gains(space_map.out)),
        )
        for axes, matrix in roles:
            for axis in axes:
                pieces[axis.parameter, axis.dim].append(Piece(name, axis, space.size, matrix))
    return pieces


def moved_tensor(tensor: torch.Tensor, name: str, pieces: Pieces, skip: tuple[int, str] | None = None) -> torch.Tensor:
    """One parameter re-expressed, in the wider type of it and of the maps (float64, those of `SpaceMap`); `skip` leaves
    out one space along one dimension.
    """
    value = tensor
    for dim in range(tensor.dim()):
        chosen = [piece for piece in pieces.get((name, dim), ()) if (dim, piece.space) != skip]
        if chosen:
            value = _along(value.to(torch.promote_types(value.dtype, chosen[0].matrix.dtype)), dim, chosen, name)
    return value


def moved(module: nn.Module, graph: SpaceGraph, maps: Mapping[str, MapLike]) -> dict[str, torch.Tensor]:
    """State dict of `module` with every mapped space re-expressed; spaces without a map keep their basis.

    Writers get `O` along their axis, readers `R^T`, gains `|O|` normalised, biases that write the space also its
    shift. Unequal widths change shapes: see `rebuilt`. Computed in float64, returned in each tensor's own type.
    Raises `SpaceMismatch` for unknown spaces, maps that do not fit, and shifts of a space that no bias writes.
    """
    return moved_state(module.state_dict(), graph, maps)


def moved_state(
    source: Mapping[str, torch.Tensor], graph: SpaceGraph, maps: Mapping[str, MapLike]
) -> dict[str, torch.Tensor]:
    """As `moved`, of a state dict; gradients pass through it and through the maps."""
    pieces = pieces_of(graph, maps)
    shifts: dict[str, torch.Tensor] = {}
    for name, space_map in maps.items():
        if space_map.shift is not None:
            shifts.update(_shifted(source, graph[name], space_map.shift))
    result = {}
    for name, tensor in source.items():
        value = moved_tensor(tensor, name, pieces)
        if name in shifts:
            value = value + shifts[name].double()
        result[name] = value.to(tensor.dtype) if value is not tensor else tensor.clone()
    return result


def unit_rows(tensor: torch.Tensor, axis: Axis, size: int) -> torch.Tensor:
    """`[size, features]`: all entries of a tensor that belong to each unit of the space along an axis, float64."""
    length = axis.tile * size * axis.repeat
    segment = tensor.double().movedim(axis.dim, 0)[axis.offset : axis.offset + length]
    return segment.reshape(axis.tile, size, axis.repeat, -1).movedim(1, 0).reshape(size, -1)


def _require_fit(space: Space, space_map: MapLike) -> None:
    if space_map.out.shape[1] != space.size or space_map.into.shape != space_map.out.T.shape:
        raise SpaceMismatch(
            f"space '{space.name}' has {space.size} units but its map is out {tuple(space_map.out.shape)}, "
            f"into {tuple(space_map.into.shape)}; expected [m, {space.size}] and [{space.size}, m]"
        )


def _shifted(state: Mapping[str, torch.Tensor], space: Space, shift: torch.Tensor) -> dict[str, torch.Tensor]:
    """The shift laid out for the biases that write the space."""
    biases = [axis for axis in space.writers if state[axis.parameter].dim() == 1 and axis.parameter.endswith("bias")]
    if not biases and bool(shift.any()):
        raise SpaceMismatch(
            f"no bias writes space '{space.name}', so its map cannot have a shift; build layers with one"
        )
    return {axis.parameter: shift.repeat_interleave(axis.repeat).repeat(axis.tile) for axis in biases}


def _along(tensor: torch.Tensor, dim: int, pieces: list[Piece], name: str) -> torch.Tensor:
    """Apply the maps of one dimension: interval by interval (concatenations), factor by factor (products)."""
    intervals: dict[tuple[int, int], list[Piece]] = defaultdict(list)
    for piece in pieces:
        length = piece.axis.tile * piece.size * piece.axis.repeat
        intervals[piece.axis.offset, length].append(piece)
    tensor = tensor.movedim(dim, -1)
    parts, position = [], 0
    for (offset, length), group in sorted(intervals.items(), key=lambda item: item[0]):
        if offset < position or offset + length > tensor.shape[-1]:
            raise SpaceMismatch(
                f"axes of '{name}' along dimension {dim} overlap or run past its {tensor.shape[-1]} entries"
            )
        parts += [tensor[..., position:offset], _factors(tensor[..., offset : offset + length], group)]
        position = offset + length
    parts.append(tensor[..., position:])
    return torch.cat(parts, -1).movedim(-1, dim)


def _factors(tensor: torch.Tensor, group: list[Piece]) -> torch.Tensor:
    """Apply the maps of a product axis, each along its own factor (last dimension of `tensor`)."""
    lead, total = tensor.shape[:-1], tensor.shape[-1]
    sizes, matrices, stride = [], [], total
    for piece in sorted(group, key=lambda p: -p.axis.repeat):  # outermost factor first; gaps are left alone
        outer = stride // (piece.size * piece.axis.repeat)
        sizes += [outer, piece.size]
        matrices += [None, piece.matrix]
        stride = piece.axis.repeat
    value = tensor.reshape(*lead, *sizes, stride)
    for k, matrix in enumerate(matrices):
        if matrix is None:
            continue
        dim = len(lead) + k
        copied = _copied(matrix)
        if copied is not None:
            value = value.index_select(dim, copied)
        else:
            value = torch.tensordot(value, matrix.to(value), dims=([dim], [1])).movedim(-1, dim)
    return value.reshape(*lead, prod(value.shape[len(lead) :]))


def _copied(matrix: torch.Tensor) -> torch.Tensor | None:
    """The unit that each row takes, where a map copies units and learns nothing; else None."""
    if matrix.requires_grad or int(matrix.count_nonzero()) != len(matrix):
        return None
    ones = matrix == 1
    return ones.int().argmax(1) if bool((ones.sum(1) == 1).all()) else None


def rebuilt(module: nn.Module, state: Mapping[str, torch.Tensor]) -> nn.Module:
    """A copy of `module` that holds `state`, resized where widths changed.

    Sizes that layers keep as attributes (features, channels, groups of depthwise convolutions, normalised shapes)
    follow the tensors. Raises `SpaceMismatch` when the state misses a tensor.
    """
    missing = sorted(set(module.state_dict()) - set(state))
    if missing:
        raise SpaceMismatch(f"the state misses '{missing[0]}' ({len(missing)} tensors in all); pass a full state dict")
    result = copy.deepcopy(module)
    ties: dict[int, Any] = {}
    for part_name, part in result.named_modules():
        for registry in (part._parameters, part._buffers):
            for key, old in list(registry.items()):
                name = f"{part_name}.{key}" if part_name else key
                if old is None or name not in state:
                    continue
                if id(old) not in ties:
                    new = state[name].detach().clone().to(old.device, old.dtype)
                    ties[id(old)] = (old, nn.Parameter(new, old.requires_grad) if registry is part._parameters else new)
                registry[key] = ties[id(old)][1]
        for kind, resize in _RESIZERS:
            if isinstance(part, kind):
                resize(part)
    return result


def _resize_linear(part: Any) -> None:
    part.out_features, part.in_features = part.weight.shape


def _resize_convolution(part: Any) -> None:
    written, read = part.weight.shape[:2]
    if part.transposed:
        written, read = read * part.groups, written
    elif part.groups == part.in_channels and part.groups > 1:
        part.groups, read = written // (part.out_channels // part.in_channels), 1
    part.out_channels = written
    part.in_channels = read if part.transposed else read * part.groups


def _resize_batch_norm(part: Any) -> None:
    reference = part.weight if part.weight is not None else part.running_mean
    if reference is not None:
        part.num_features = len(reference)


def _resize_norm(part: Any) -> None:
    if part.weight is not None:
        part.normalized_shape = tuple(part.weight.shape)


def _resize_group_norm(part: Any) -> None:
    if part.weight is not None:
        part.num_channels = len(part.weight)


def _resize_embedding(part: Any) -> None:
    part.num_embeddings, part.embedding_dim = part.weight.shape


_RESIZERS: tuple[tuple[type[nn.Module], Callable[[Any], None]], ...] = (
    (nn.Linear, _resize_linear),
    (nn.modules.conv._ConvNd, _resize_convolution),
    (nn.modules.batchnorm._BatchNorm, _resize_batch_norm),
    (nn.LayerNorm, _resize_norm),
    (nn.RMSNorm, _resize_norm),
    (nn.GroupNorm, _resize_group_norm),
    (nn.Embedding, _resize_embedding),
)
