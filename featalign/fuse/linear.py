"""Reductions of linear spaces, `@linear_reduction`: what a residual stream or bottleneck of the fused network holds.

`project` keeps the leading directions of the joint space. `repack` reads the joint space through a sparse dictionary
and lays the dictionary's features out anew, so that they interfere least: its code is not linear in the activations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch

from featalign.align.linear import solve_ridge
from featalign.align.maps import SpaceMap
from featalign.align.packing import pack
from featalign.dictionaries import Dictionary, train
from featalign.fuse.problem import FusionProblem
from featalign.registry import Registry
from featalign.spaces.graph import Space, Symmetry

RANK = 1e-10  # relative energy below which a direction is not used
FITTED = 16_384  # rows that a joint dictionary is trained on
LATENTS = 4  # features of a joint dictionary per dimension of the fused space
RIDGE = 1e-6
Code = Callable[[Sequence[torch.Tensor]], torch.Tensor]
Rows = Callable[[], Iterable[torch.Tensor]]


@dataclass(frozen=True)
class Reduced:
    """A linear space of the fused network.

    Attributes:
        maps: of every client, by which the rule carries weights.
        code: what the space is to hold, `[rows, m]` of every client's activations `[rows, n_k]`, where that is no sum
            of the maps' outputs: the refit aims at it.
    """

    maps: tuple[SpaceMap, ...]
    code: Code | None = None


LinearReduction = Callable[[FusionProblem, Space, torch.Tensor, Rows], Reduced]
REDUCTIONS: Registry[LinearReduction] = Registry("reduction of linear spaces")


def linear_reduction(name: str) -> Callable[[LinearReduction], LinearReduction]:
    """Register a reduction: of a problem, a space, the joint second moment, and a pass over the joint rows."""
    return REDUCTIONS.register(name)


@linear_reduction("project")
def project(problem: FusionProblem, space: Space, moment: torch.Tensor, rows: Rows) -> Reduced:
    """Maps onto the leading directions `U` of the joint second moment of `sqrt(lambda_k) a_k`.

    `J_k = sqrt(lambda_k) U_k^T` turns a network fused with itself and leaves its lengths; the least-squares reading is
    `a_k ~ U_k z / sqrt(lambda_k)`. As many directions are used as the widest client uses: a stream that is never
    written to along its mean keeps a silent direction, without which its LayerNorm could not be given back.
    """
    used = min(_used(problem, space, moment), space.size)
    directions = torch.linalg.eigh(moment)[1].flip(1)[:, :used]
    full = directions.new_zeros(len(moment), space.size)
    full[:, :used] = directions
    return Reduced(_maps(problem, space, full, full))


@linear_reduction("repack")
def repack(problem: FusionProblem, space: Space, moment: torch.Tensor, rows: Rows) -> Reduced:
    """Features of a joint dictionary (crosscoder, Lindsey et al. 2024) laid out anew in the fused width.

    The code of a row is that of its direction times its length, so that it passes norms. Where the joint space fits the
    fused width, or one client takes part, nothing needs to share directions and this is `project`.
    """
    values = torch.linalg.eigvalsh(moment)
    rank = int((values > RANK * values[-1].clamp_min(1e-300)).sum())
    if rank <= _used(problem, space, moment) or not problem.averaged:
        return project(problem, space, moment, rows)
    taken: list[torch.Tensor] = []
    for part in rows():
        taken.append(part.float())
        if sum(map(len, taken)) >= FITTED:
            break
    fitted = torch.nn.functional.normalize(torch.cat(taken)[:FITTED], dim=1)
    packed = Packed.of(fitted, space.size, problem.cohort.seed)
    square: Any = 0
    cross: Any = 0
    whole: Any = 0
    for part in rows():
        code = packed(part)
        square, cross, whole = square + code.T @ code, cross + code.T @ part, whole + part.T @ part
    into = solve_ridge(square, cross, RIDGE).T
    out = solve_ridge(whole, cross.T, RIDGE)
    weights = problem.mixing

    def joint(activations: Sequence[torch.Tensor]) -> torch.Tensor:
        return packed(torch.cat([w**0.5 * a.double() for w, a in zip(weights, activations)], 1))

    return Reduced(_maps(problem, space, out, into), joint)


@dataclass(frozen=True)
class Packed:
    """A dictionary of joint rows whose features, and mean, have directions `[F + 1, m]` with the atoms' lengths."""

    dictionary: Dictionary
    directions: torch.Tensor

    @classmethod
    def of(cls, rows: torch.Tensor, width: int, seed: int) -> Packed:
        """Train the dictionary on rows `[samples, n]` of unit length, and lay its features out."""
        found = train(rows, LATENTS * width, seed=seed, allow_narrow=True)
        atoms = torch.cat([found.W_dec, found.b_dec[None]]).double()
        lengths = atoms.norm(dim=1)
        with torch.no_grad():
            codes = found.encode(rows).double()
        energy = torch.cat([codes.pow(2).mean(0), codes.new_ones(1)]) * lengths**2
        unit = pack(atoms.new_zeros(len(atoms), width), energy, width)
        return cls(found, unit * lengths[:, None])

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """The packed code `[rows, m]` of joint rows, float64."""
        length = rows.double().norm(dim=1, keepdim=True)
        with torch.no_grad():
            codes = self.dictionary.encode((rows / length.clamp_min(1e-12)).float()).double()
        return length * (codes @ self.directions[:-1] + self.directions[-1])


def _used(problem: FusionProblem, space: Space, moment: torch.Tensor) -> int:
    """Directions that the widest client uses."""
    edges = torch.tensor([0, *(graph[space.name].size for graph in problem.graphs)]).cumsum(0).tolist()
    used = 1
    for a, b in pairwise(edges):
        energies = torch.linalg.eigvalsh(moment[a:b, a:b])
        used = max(used, int((energies > RANK * energies[-1].clamp_min(1e-300)).sum()))
    return used


def _maps(problem: FusionProblem, space: Space, out: torch.Tensor, into: torch.Tensor) -> tuple[SpaceMap, ...]:
    """Of every client, from maps of the joint space `sqrt(lambda_k) a_k`, `[sum n_k, m]` both."""
    sizes = [graph[space.name].size for graph in problem.graphs]
    maps = []
    for weight, own, back in zip(problem.mixing, out.split(sizes), into.split(sizes)):
        share = weight**0.5 if weight > 0 else float("inf")
        maps.append(SpaceMap((own / share).T.contiguous(), back / share, Symmetry.LINEAR))
    return tuple(maps)
