"""Exact symmetries of a client as parameters, so that a loss of the averaged network can choose the alignment.

Every map stays in its space's symmetry: rotations of linear spaces and of the bases inside heads are `exp(S) O` with a
skew-symmetric `S`; units and heads are permuted by the best assignment of a matrix of scores, through which gradients
pass as if it were its Sinkhorn relaxation (straight-through). Behind a ReLU each unit has a positive factor as well.
Source: Theus et al. 2025, "Generalized linear mode connectivity for transformers" (learned matching); straight-through
permutations: Ainsworth et al. 2023, algorithm 2; Sinkhorn relaxation: Mena et al. 2018.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import nn

from featalign.align.heads import attention_layers, gauged_state
from featalign.align.linear import polar
from featalign.align.maps import ROTATIONS, Alignment, SpaceMap
from featalign.errors import SpaceMismatch
from featalign.spaces.apply import moved_state, rebuilt
from featalign.spaces.graph import Space, SpaceGraph, Symmetry
from featalign.transport import solve

SWEEPS = 10  # of the Sinkhorn relaxation
START = 2.0  # score of the pairs that are matched at the start; all others have zero
LARGEST = 2.0  # positive factors stay within this and its inverse
EXACT = 1e-4  # departure from an orthogonal start that float32 explains


class LearnedSymmetries(nn.Module):
    """The symmetries of one client, started at an alignment of permutations and rotations.

    Args:
        module, graph: the client; it is not changed.
        start: where learning begins.
        temperature: of the Sinkhorn relaxation, in units of the scores.

    Calling it returns the state dict of the moved client, with gradients in training mode. Raises `SpaceMismatch` for
    a start that is no permutation or rotation of every space (unequal widths, soft maps).
    """

    def __init__(self, module: nn.Module, graph: SpaceGraph, start: Alignment, temperature: float = 0.5):
        super().__init__()
        self.graph, self.start, self.temperature = graph, start, temperature
        layers = attention_layers(graph)
        inner = {space.name: (layer.heads.size, space) for layer in layers for space in layer.inner}
        self.spaces = {space.name: space for space in graph.hidden if space.name not in inner}
        for space in graph.hidden:
            _require_exact(space, start.maps[space.name])
        self.first = {
            name: start.gauge.get(name, torch.eye(space.size, dtype=torch.float64).expand(heads, -1, -1))
            for name, (heads, space) in inner.items()
        }
        self.keys = {name: f"p{place}" for place, name in enumerate((*self.spaces, *inner))}  # names hold dots
        self.turns, self.scores, self.factors = nn.ParameterDict(), nn.ParameterDict(), nn.ParameterDict()
        for name, space in self.spaces.items():
            if space.symmetry in ROTATIONS:
                self.turns[self.keys[name]] = nn.Parameter(torch.zeros(space.size, space.size))
                continue
            self.scores[self.keys[name]] = nn.Parameter(START * start.maps[name].out.float())
            if space.symmetry is Symmetry.SCALED_PERMUTATION:
                self.factors[self.keys[name]] = nn.Parameter(torch.zeros(space.size))
        for name, gauge in self.first.items():
            self.turns[self.keys[name]] = nn.Parameter(torch.zeros(gauge.shape))
        self._client = [rebuilt(module, module.state_dict()).float()]  # a list: no submodule, its weights are fixed

    def forward(self) -> dict[str, torch.Tensor]:
        """The state dict of the moved client."""
        maps = {**self.start.maps, **{name: self._map(space) for name, space in self.spaces.items()}}
        if self.training:  # values are exact all the same: permutations, and rotations that are applied to float32
            maps = {
                name: replace(found, out=found.out.float(), into=found.into.float()) for name, found in maps.items()
            }
        return moved_state(gauged_state(self._client[0], self.graph, self._gauge()), self.graph, maps)

    def _gauge(self) -> dict[str, torch.Tensor]:
        return {name: self._turn(name) @ first for name, first in self.first.items()}

    def _turn(self, name: str) -> torch.Tensor:
        """`exp(S)`, float64."""
        free = self.turns[self.keys[name]].double()
        return torch.linalg.matrix_exp(free - free.mT)

    def _map(self, space: Space) -> SpaceMap:
        """The map of a space: exact in its value, relaxed in its gradient."""
        key, start = self.keys[space.name], self.start.maps[space.name]
        if key in self.turns:
            out = self._turn(space.name) @ start.out
            return SpaceMap(out, out.T, Symmetry.ORTHOGONAL)
        out = _assigned(self.scores[key].detach())
        if self.training:
            soft = _relaxed(self.scores[key].double() / self.temperature)
            out = out + soft - soft.detach()
        if key not in self.factors:
            return SpaceMap(out, out.T, Symmetry.PERMUTATION)
        factor = (math.log(LARGEST) * torch.tanh(self.factors[key].double())).exp()
        return SpaceMap(factor[:, None] * out, out.T / factor, Symmetry.SCALED_PERMUTATION)

    @torch.no_grad()
    def alignment(self) -> Alignment:
        """What was learned: exact maps, float64."""
        self.eval()
        maps = dict(self.start.maps)
        for name, space in self.spaces.items():
            found = self._map(space)
            if found.symmetry is Symmetry.ORTHOGONAL:
                out = polar(found.out)
                found = SpaceMap(out, out.T.contiguous(), found.symmetry)
            maps[name] = found
        return Alignment(maps, {name: turn.clone() for name, turn in self._gauge().items()})


def _assigned(scores: torch.Tensor) -> torch.Tensor:
    """The permutation matrix `[n, n]` with the highest total score, float64."""
    return torch.from_numpy(solve(scores.amax() - scores, method="exact").dense() * len(scores)).round()


def _relaxed(scores: torch.Tensor) -> torch.Tensor:
    """The doubly stochastic matrix `[n, n]` that Sinkhorn's sweeps make of `exp(scores)`."""
    kernel = (scores - scores.detach().amax(1, keepdim=True)).exp()
    columns = kernel.new_ones(len(kernel))
    rows = columns
    for _ in range(SWEEPS):
        rows = 1 / (kernel @ columns)
        columns = 1 / (rows @ kernel)
    return rows[:, None] * kernel * columns


def _require_exact(space: Space, found: SpaceMap) -> None:
    eye = torch.eye(space.size, dtype=torch.float64)
    if found.out.shape != eye.shape or not torch.allclose(found.out @ found.out.T, eye, atol=EXACT):
        raise SpaceMismatch(
            f"space '{space.name}' of {space.size} units starts with a map {tuple(found.out.shape)} that is neither a "
            "permutation nor a rotation; learn from clients of equal widths and a matcher with exact maps"
        )
