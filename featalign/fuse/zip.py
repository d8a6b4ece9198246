"""`zip`: the union of all clients' units reduced to the reference's width by column-subset selection, then refitted.

Neuron `zip`, feature `zip` and their mixture are one method with different pools.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from featalign.align.maps import Alignment, SpaceMap
from featalign.align.neuron import pre_site
from featalign.align.pool import reading_map, select_columns
from featalign.errors import BadOption, SpaceMismatch
from featalign.fuse.head import log_mixture
from featalign.fuse.methods import Proposal, fusion_method
from featalign.fuse.problem import FusionProblem, Held
from featalign.spaces.graph import Layer, Site, Space, Symmetry

PreUnits = Callable[[Held, int, Space], torch.Tensor]


def neuron_units(held: Held, client: int, space: Space) -> torch.Tensor:
    """Pre-activations of a client's own units, `[samples, n]`."""
    return held[pre_site(space)]


@dataclass(frozen=True)
class Chosen:
    """Units chosen for one space: positions in the pool, and where each client's part of the pool begins."""

    index: torch.Tensor
    offsets: tuple[int, ...]

    def of_client(self, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """`(fused unit, unit of client k)` for the chosen units that come from client k."""
        low, high = self.offsets[k], self.offsets[k + 1]
        rows = torch.nonzero((self.index >= low) & (self.index < high)).ravel()
        return rows, self.index[rows] - low


@fusion_method("zip", basis="pool", unequal_widths=True, follows_mixing=True)
def zip_neurons(problem: FusionProblem) -> Proposal:
    """Union of all clients' units reduced to the original width by column-subset selection."""
    chosen, moments = choose_units(problem, neuron_units, "neurons")
    alignments = []
    for k, weight in enumerate(problem.mixing):
        maps = {}
        for space in problem.graph.hidden:
            size = problem.graphs[k][space.name].size
            rows, units = chosen[space.name].of_client(k)
            out = torch.zeros(space.size, size)
            out[rows, units] = 1 / weight if weight > 0 else 0.0
            low, high = chosen[space.name].offsets[k], chosen[space.name].offsets[k + 1]
            reading = reading_map(moments[space.name][0], chosen[space.name].index.tolist())[low:high]
            maps[space.name] = SpaceMap(out, reading.float(), Symmetry.LINEAR)
        alignments.append(Alignment(maps))
    origin = {name: [len(c.of_client(k)[0]) for k in range(len(problem.clients))] for name, c in chosen.items()}
    return Proposal(tuple(alignments), notes={"units_from_client": origin})


@fusion_method("feature-zip", basis="pool", needs_refit=True, follows_mixing=True)
def zip_features(problem: FusionProblem) -> Proposal:
    """Union of all clients' transcoder latents reduced to the original width: the fused units are features."""

    def latents(held: Held, client: int, space: Space) -> torch.Tensor:
        bases = problem.transcoders.get(space.name)
        if bases is None:
            raise BadOption(f"space '{space.name}' has no transcoders; train them before 'feature-zip'")
        basis = bases[client]
        return held[pre_site(space)] @ basis.W_enc + basis.b_enc

    chosen, _ = choose_units(problem, latents, "transcoders")

    def targets(problem: FusionProblem, layer: Layer, held: Sequence[Held]) -> torch.Tensor:
        space = problem.graph[layer.writes]
        if space.pinned:
            return torch.stack([w * h[Site(layer.module)].double() for w, h in zip(problem.mixing, held)]).sum(0)
        pool = torch.cat([latents(h, k, space) for k, h in enumerate(held)], dim=1)
        return pool[:, chosen[space.name].index]

    stay = Alignment({space.name: SpaceMap.identity(space.size) for space in problem.graph.hidden})
    origin = {name: [len(c.of_client(k)[0]) for k in range(len(problem.clients))] for name, c in chosen.items()}
    return Proposal(
        tuple(stay for _ in problem.clients), targets, exact_first=False, notes={"units_from_client": origin}
    )


def choose_units(
    problem: FusionProblem, pre_units: PreUnits, pool: str
) -> tuple[dict[str, Chosen], dict[str, tuple[torch.Tensor, torch.Tensor]]]:
    """Greedy choice per space among the clients' units, against what the next layers read from them.

    Targets are the pre-activations of every layer that reads the space, of every client, weighted by the square root of
    its mixing weight; layers that write the output aim at the log-mixture instead. Clients of weight zero are left out.
    `pool` names the pool, whose Gram matrices are kept for other mixing weights.
    """
    _require_linear(problem)
    moments = _pool_moments(problem, pre_units, pool)
    chosen = {}
    for space in problem.graph.hidden:
        gram, cross, sizes = moments[space.name]
        offsets = [0]
        for size in sizes:
            offsets.append(offsets[-1] + size)
        weights = torch.cat([torch.full((size,), weight) for size, weight in zip(sizes, problem.mixing)])
        active = torch.nonzero(weights > 0).ravel()
        if len(active) < space.size:  # a client's dictionary may be narrower than the layer
            active = torch.arange(len(weights))
        picked = select_columns(gram[active][:, active], cross[active], space.size)
        chosen[space.name] = Chosen(active[torch.as_tensor(picked)].sort().values, tuple(offsets))
    return chosen, {name: (gram, cross) for name, (gram, cross, _) in moments.items()}


def _pool_moments(problem: FusionProblem, pre_units: PreUnits, name: str) -> dict[str, Any]:
    """Uncentred moments `(gram, cross, sizes)` of the pool of each space, streamed once over the refit inputs."""
    found: dict[str, list[Any]] = {}
    grams = problem.memory.grams
    kept = {space.name for space in problem.graph.hidden if (name, space.name) in grams}
    outputs_space = {layer.module for layer in problem.graph.layers if problem.graph[layer.writes].pinned}
    for _, held, outputs in problem.activations():
        for space in problem.graph.hidden:
            parts = [torch.relu(pre_units(h, k, space)) for k, h in enumerate(held)]
            readers = [layer.module for layer in problem.graph.layers if layer.reads == space.name]
            wanted = []
            for module in readers:
                if module in outputs_space:
                    wanted.append(log_mixture(outputs, problem.mixing, problem.class_counts).float())
                else:
                    wanted += [w**0.5 * h[Site(module)] for w, h in zip(problem.mixing, held) if w > 0]
            pool, target = torch.cat(parts, dim=1), torch.cat(wanted, dim=1)
            entry = found.setdefault(space.name, [0, 0, tuple(part.shape[1] for part in parts)])
            if space.name not in kept:
                grams[name, space.name] = grams.get((name, space.name), 0) + (pool.T @ pool).double()
            entry[0] = grams[name, space.name]
            entry[1] = entry[1] + (pool.T @ target).double()
    return found


def _require_linear(problem: FusionProblem) -> None:
    """Raise `SpaceMismatch` for layers whose inputs are not the units themselves (convolutions, attention)."""
    modules = dict(problem.clients[problem.reference].named_modules())
    for layer in problem.graph.layers:
        if not isinstance(modules[layer.module], nn.Linear):
            raise SpaceMismatch(
                f"layer '{layer.module}' is a {type(modules[layer.module]).__name__}; unit pools are "
                "built for chains of Linear layers, leave 'zip' and 'feature-zip' out of methods="
            )
