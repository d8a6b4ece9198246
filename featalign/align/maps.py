"""Space maps: what every method of the toolkit chooses, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from featalign.errors import SpaceMismatch
from featalign.spaces.graph import Symmetry
from featalign.transport import Plan

ROTATIONS = (Symmetry.ORTHOGONAL, Symmetry.LINEAR)


@dataclass(frozen=True)
class SpaceMap:
    """How one client's space (n units) is moved into the reference space (m units), float64.

    Attributes:
        out: `O [m, n]`, acts on the rows of every tensor that writes the space.
        into: `R [n, m]`, acts on the columns of every tensor that reads it.
        symmetry: the class the pair belongs to; a map within the space's own symmetry leaves the network unchanged.
        residual: share of the reference's variance that the map leaves unexplained on the probe, if it was measured.
        shift: `[m]` added to biases that write the space (affine maps), or None.
        plan: the transport plan behind the map, where there is one.
    """

    out: torch.Tensor
    into: torch.Tensor
    symmetry: Symmetry
    residual: float = float("nan")
    shift: torch.Tensor | None = None
    plan: Plan | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.out.shape != self.into.T.shape:
            raise SpaceMismatch(f"out-map {tuple(self.out.shape)} and in-map {tuple(self.into.shape)} do not pair")

    @classmethod
    def identity(cls, size: int, symmetry: Symmetry = Symmetry.PERMUTATION) -> SpaceMap:
        """The reference's own map."""
        eye = torch.eye(size, dtype=torch.float64)
        return cls(eye, eye, symmetry, residual=0.0)

    @classmethod
    def from_plan(cls, plan: Plan, symmetry: Symmetry = Symmetry.PERMUTATION) -> SpaceMap:
        """The pair that is exact on duplicated units at any widths: `O = diag(1/b) T^T`, `R = diag(1/a) T`."""
        coupling = torch.from_numpy(plan.dense()).double()
        a, b = coupling.sum(1).clamp_min(1e-300), coupling.sum(0).clamp_min(1e-300)
        return cls((coupling / b).T.contiguous(), coupling / a[:, None], symmetry, plan=plan)

    @classmethod
    def published(cls, plan: Plan, symmetry: Symmetry = Symmetry.PERMUTATION) -> SpaceMap:
        """The pair of OTFusion's code, both maps divided by the reference's masses: `O = diag(1/b) T^T`, `R = O^T`.

        For unequal widths it rescales the client by m/n with every space; kept to reproduce Singh and Jaggi (2020).
        """
        found = cls.from_plan(plan, symmetry)
        return replace(found, into=found.out.T.contiguous())


@dataclass(frozen=True)
class Alignment:
    """One map per hidden space, for one client against the reference.

    Attributes:
        maps: by space.
        gauge: by space inside attention heads, `[heads, width, width]`: a change of basis of every head of the client
            that leaves its function alone, made before the maps are applied (they permute the heads).
        diagnostics: whatever a matcher recorded.
    """

    maps: Mapping[str, SpaceMap]
    gauge: Mapping[str, torch.Tensor] = field(default_factory=dict)
    diagnostics: Mapping[str, Any] = field(default_factory=dict)

    @property
    def plans(self) -> dict[str, Plan]:
        """The transport plans, by space."""
        return {name: found.plan for name, found in self.maps.items() if found.plan is not None}
