"""Structured pruning: whole units leave a network, with all that writes and reads them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from featalign.errors import BadOption
from featalign.registry import Registry
from featalign.spaces.apply import moved, rebuilt, unit_rows
from featalign.spaces.graph import Space, SpaceGraph

Criterion = Callable[[torch.Tensor, torch.Generator], torch.Tensor]
CRITERIA: Registry[Criterion] = Registry("pruning criterion")


@CRITERIA.register("l1")
def l1(incoming: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Sum of the absolute incoming weights of each unit, from `[units, features]` (Li et al. 2017)."""
    return incoming.abs().sum(1)


@CRITERIA.register("l2")
def l2(incoming: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Euclidean norm of the incoming weights of each unit."""
    return incoming.norm(dim=1)


@CRITERIA.register("random")
def random(incoming: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A draw for each unit."""
    return torch.rand(len(incoming), generator=generator)


@dataclass(frozen=True)
class _Selection:
    """Units that stay, as the maps of a space: `out [kept, units]`, `into [units, kept]`."""

    out: torch.Tensor
    shift: torch.Tensor | None = None

    @property
    def into(self) -> torch.Tensor:
        return self.out.T


def prune(
    module: nn.Module,
    graph: SpaceGraph,
    share: float,
    criterion: str = "l1",
    spaces: Sequence[str] | None = None,
    seed: int = 0,
) -> nn.Module:
    """A smaller copy of a network, without a share of the units of its hidden spaces.

    Args:
        graph: of the module (`spaces.trace`).
        share: of each space's units that leave, those of least importance; one unit always stays.
        criterion: a name of `CRITERIA`.
        spaces: names of the hidden spaces to prune; all by default.
        seed: of random choices.

    Raises `BadOption` for a share outside [0, 1) and a space that is not hidden, `UnknownName` for the criterion.
    """
    if not 0 <= share < 1:
        raise BadOption(f"share = {share}; prune a share of at least 0 and below 1")
    hidden = {space.name: space for space in graph.hidden}
    chosen = list(hidden) if spaces is None else list(spaces)
    if unknown := [name for name in chosen if name not in hidden]:
        raise BadOption(f"'{unknown[0]}' is no hidden space; choices: {', '.join(hidden)}")
    important, generator = CRITERIA[criterion], torch.Generator().manual_seed(seed)
    maps = {}
    for name in chosen:
        size = hidden[name].size
        scores = important(incoming(module, hidden[name]), generator)
        kept = scores.topk(max(1, size - round(share * size))).indices.sort().values
        maps[name] = _Selection(torch.eye(size, dtype=torch.float64)[kept])
    return rebuilt(module, moved(module, graph, maps))


def incoming(module: nn.Module, space: Space) -> torch.Tensor:
    """`[units, features]`: the weights that write each unit of a space, float64."""
    state = module.state_dict()
    written = [axis for axis in space.writers if state[axis.parameter].dim() > 1]
    return torch.cat([unit_rows(state[axis.parameter], axis, space.size) for axis in written], dim=1)
