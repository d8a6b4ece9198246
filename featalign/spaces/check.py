"""The self-check of a graph: random admissible maps must not move the network's outputs (the step-0 test)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from featalign.errors import TraceError
from featalign.spaces.apply import moved
from featalign.spaces.capture import outputs_of
from featalign.spaces.graph import SpaceGraph, Symmetry
from featalign.spaces.structures import require_weights, tensors_in


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


def output_change(before: list[torch.Tensor], after: list[torch.Tensor]) -> float:
    """Largest change of an output relative to the largest output; entries that are equal (also infinite) do not count.

    Infinite where NaN or infinity came or went.
    """
    changes = [0.0]
    for old, new in zip(before, after, strict=True):
        differs = (old != new) & ~(old.isnan() & new.isnan())
        if bool(differs.any()):
            scale = old[old.isfinite()].abs().max() if bool(old.isfinite().any()) else old.new_zeros(())
            change = float(
                (new[differs].double() - old[differs].double()).abs().max() / scale.double().clamp_min(1e-12)
            )
            changes.append(change if change == change else float("inf"))
    return max(changes)


def _reference(module: nn.Module, example: Any) -> tuple[nn.Module, list[torch.Tensor]]:
    """A copy in float64 with its outputs; in its own precision where the code insists on that."""
    copied = copy.deepcopy(module).double()
    try:
        return copied, outputs_of(copied, example)
    except RuntimeError:  # a module that casts to a type of its own
        copied = copy.deepcopy(module)
        return copied, outputs_of(copied, example)


def _unsteady(module: nn.Module, example: Any) -> str:
    """The innermost module whose outputs differ between two calls though its inputs do not."""
    runs: list[list[tuple[str, list[torch.Tensor], list[torch.Tensor]]]] = []
    for _ in range(2):
        seen: list[tuple[str, list[torch.Tensor], list[torch.Tensor]]] = []

        def note(name: str, into: list[Any] = seen) -> Callable[..., None]:
            return lambda _m, args, out: into.append((name, *([t.clone() for t in tensors_in(v)] for v in (args, out))))

        handles = [part.register_forward_hook(note(name)) for name, part in module.named_modules()]
        try:
            outputs_of(module, example)
        finally:
            for handle in handles:
                handle.remove()
        runs.append(seen)
    for (name, args_a, out_a), (_, args_b, out_b) in zip(*runs):
        same = [all(map(torch.equal, a, b)) for a, b in ((args_a, args_b), (out_a, out_b))]
        if same == [True, False]:
            return name or type(module).__name__
    return type(module).__name__


def check(graph: SpaceGraph, module: nn.Module, example: Any, tolerance: float = 1e-5, seed: int = 0) -> Check:
    """Apply a random admissible transform to every hidden space and compare outputs (the step-0 test).

    In float64, so that only a wrong basis can fail. `example` is what the graph was traced on, or any other input.
    Raises `TraceError` when outputs move by more than `tolerance` relative, and for modules that cannot be checked:
    without parameters, on the meta device, with outputs that differ from call to call.
    """
    require_weights(module)
    double, reference = _reference(module, example)
    if (noise := output_change(reference, outputs_of(double, example))) > min(tolerance, 1e-9):
        raise TraceError(
            f"the outputs of two calls on the same example differ by {noise:.2g} (relative): "
            f"'{_unsteady(double, example)}' draws random numbers in eval mode; switch that off, or seed it"
        )
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
