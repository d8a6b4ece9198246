"""The self-check of a graph: random admissible maps must not move the network's outputs (the step-0 test)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from featalign.errors import TraceError
from featalign.spaces.apply import moved
from featalign.spaces.capture import evaluating
from featalign.spaces.graph import SpaceGraph, Symmetry
from featalign.spaces.trace import tensors_in


@dataclass(frozen=True)
class Check:
    """Figures of a self-check.

    Attributes:
        error: largest change of an output relative to the largest output.
        spaces, units: hidden spaces that were moved and their sizes added up.
        moved_share: share of the parameters' entries that changed (zero would make the check empty).
        worst: the space that moves the outputs most on its own; '' where the check passes.
    """

    error: float
    spaces: int
    units: int
    moved_share: float
    worst: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As plain numbers."""
        return dict(vars(self))


@dataclass(frozen=True)
class Transform:
    """An invertible map of a space onto itself, with its exact inverse as in-map."""

    out: torch.Tensor
    into: torch.Tensor
    shift: torch.Tensor | None = None


def random_transform(size: int, symmetry: Symmetry, generator: torch.Generator) -> Transform:
    """A random map of the symmetry class, well conditioned, float64 `[size, size]`."""
    if symmetry in (Symmetry.PERMUTATION, Symmetry.SCALED_PERMUTATION):
        out = torch.eye(size, dtype=torch.float64)[torch.randperm(size, generator=generator)]
        if symmetry is Symmetry.PERMUTATION:
            return Transform(out, out.T)
        scale = 0.5 + 1.5 * torch.rand(size, generator=generator, dtype=torch.float64)
        return Transform(scale[:, None] * out, out.T / scale)
    out = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))[0]
    if symmetry is Symmetry.ORTHOGONAL:
        return Transform(out, out.T)
    if symmetry is Symmetry.PINNED:
        return Transform(torch.eye(size, dtype=torch.float64), torch.eye(size, dtype=torch.float64))
    other = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))[0]
    scale = 0.5 + 1.5 * torch.rand(size, generator=generator, dtype=torch.float64)
    return Transform((out * scale) @ other, other.T @ (out / scale).T)


def random_maps(graph: SpaceGraph, seed: int = 0) -> dict[str, Transform]:
    """A random admissible map for every hidden space."""
    generator = torch.Generator().manual_seed(seed)
    return {space.name: random_transform(space.size, space.symmetry, generator) for space in graph.hidden}


def in_double(structure: Any) -> Any:
    """Floating-point tensors of a nested structure as float64."""
    if isinstance(structure, torch.Tensor):
        return structure.double() if structure.is_floating_point() else structure
    if isinstance(structure, Mapping):
        return {key: in_double(value) for key, value in structure.items()}
    if isinstance(structure, (tuple, list)):
        return type(structure)(in_double(value) for value in structure)
    return structure


def outputs_of(module: nn.Module, example: Any) -> list[torch.Tensor]:
    """Every tensor that `module` returns on an example (tensor, tuple of arguments or mapping)."""
    with evaluating(module):
        if isinstance(example, Mapping):
            return tensors_in(module(**example))
        return tensors_in(module(*example) if isinstance(example, tuple) else module(example))


def output_change(before: list[torch.Tensor], after: list[torch.Tensor]) -> float:
    """Largest change of an output relative to the largest output."""
    changes = [float((a - b).abs().max() / b.abs().max().clamp_min(1e-12)) for a, b in zip(after, before, strict=True)]
    return max(change if change == change else float("inf") for change in changes)


def _reference(module: nn.Module, example: Any) -> tuple[nn.Module, list[torch.Tensor], Any]:
    """A copy in float64 with its outputs and example; in its own precision where the code insists on that."""
    copied, precise = copy.deepcopy(module).double(), in_double(example)
    try:
        return copied, outputs_of(copied, precise), precise
    except RuntimeError:  # a module that casts to a type of its own
        copied = copy.deepcopy(module)
        return copied, outputs_of(copied, example), example


def check(graph: SpaceGraph, module: nn.Module | None, example: Any, tolerance: float, seed: int) -> Check:
    """`SpaceGraph.check` (see there): in float64, so that only a wrong basis can fail."""
    module = graph.module if module is None else module
    example = graph.example if example is None else example
    if module is None or example is None:
        raise TraceError("a hand-written graph knows no module: call check(module, example_input)")
    double, reference, example = _reference(module, example)
    state = {name: tensor.clone() for name, tensor in double.state_dict().items()}
    maps = random_maps(graph, seed)

    def error_of(chosen: Mapping[str, Transform]) -> tuple[float, float]:
        double.load_state_dict(state)
        double.load_state_dict(moved(double, graph, chosen))
        changed = sum(int((new != state[name]).sum()) for name, new in double.state_dict().items())
        return output_change(reference, outputs_of(double, example)), changed / sum(t.numel() for t in state.values())

    error, share = error_of(maps)
    result = Check(error, len(maps), sum(len(m.out) for m in maps.values()), share)
    if error <= tolerance:
        return result
    alone = {name: error_of({name: one})[0] for name, one in maps.items()}
    worst = max(alone, key=lambda name: alone[name])
    raise TraceError(
        f"a random admissible map moved the outputs by {error:.2g} (relative), most of it from space '{worst}' "
        f"({graph[worst].symmetry}, {alone[worst]:.2g}); report the module, or pass a graph with this space pinned"
    )
