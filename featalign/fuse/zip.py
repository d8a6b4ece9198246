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
from featalign.align.pool import reading_map, select_columns
from featalign.errors import BadOption, SpaceMismatch
from featalign.fuse.head import log_mixture
from featalign.fuse.methods import Proposal, fusion_method
from featalign.fuse.problem import FusionProblem, Held
from featalign.spaces import affine
from featalign.spaces.graph import Layer, Site, Space, Symmetry

CHAINS = "unit pools want a chain of Linear and ungrouped Conv layers, leave 'zip' and 'feature-zip' out of methods="
PreUnits = Callable[[Held, int, Space], torch.Tensor]


def neuron_units(held: Held, client: int, space: Space) -> torch.Tensor:
    """Pre-activations of a client's own units, `[samples, n]`."""
    return held[space.before]


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
        return held[space.before] @ basis.W_enc + basis.b_enc

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
    its mixing weight; layers that write the output aim at the log-mixture instead. Where a layer reads patches or
    flattened positions the targets are the units themselves, weighted by how strongly they are read. Clients of weight
    zero are left out.
    `pool` names the pool, whose Gram matrices are kept for other mixing weights.
    """
    _require_chain(problem)
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
    plain = {layer.module for layer in problem.graph.layers if _reads_units(problem, layer)}
    for _, held, outputs in problem.activations():
        for space in problem.graph.hidden:
            parts = [torch.relu(pre_units(h, k, space)) for k, h in enumerate(held)]
            readers = [layer.module for layer in problem.graph.layers if layer.reads == space.name]
            wanted = []
            for module in readers:
                if module not in plain:
                    wanted += [
                        w**0.5 * read_strength(problem, k, space) * parts[k]
                        for k, w in enumerate(problem.mixing)
                        if w > 0
                    ]
                elif module in outputs_space:
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


def _reads_units(problem: FusionProblem, layer: Layer) -> bool:
    """Whether the layer multiplies the units themselves, not patches or flattened positions of them."""
    module = problem.clients[problem.reference].get_submodule(layer.module)
    return isinstance(module, nn.Linear) and module.in_features == problem.graph[layer.reads].size


def read_strength(problem: FusionProblem, client: int, space: Space) -> torch.Tensor:
    """`[n]`: norm of everything that a client's next layers multiply with each of its units."""
    own = problem.graphs[client][space.name]
    total = torch.zeros(own.size)
    for axis in own.readers:
        tensor = problem.clients[client].get_parameter(axis.parameter).detach().movedim(axis.dim, 0)
        part = tensor[axis.offset : axis.offset + axis.tile * own.size * axis.repeat]
        total += part.reshape(axis.tile, own.size, axis.repeat, -1).pow(2).sum((0, 2, 3))
    return total.sqrt()


def _require_chain(problem: FusionProblem) -> None:
    """Raise `SpaceMismatch` unless every hidden space is written by one Linear or plain convolution, and nothing else.

    A unit taken from a client is a row of one layer; normalisations and skips tie it to units that are not taken.
    """
    modules = dict(problem.clients[problem.reference].named_modules())
    writers = [layer.writes for layer in problem.graph.layers]
    for layer in problem.graph.layers:
        module, space = modules[layer.module], problem.graph[layer.writes]
        kind = type(module).__name__
        if not isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d)) or not affine.is_affine(module):
            raise SpaceMismatch(f"layer '{layer.module}' is a {kind}; {CHAINS}")
        if not space.pinned and (space.scales or writers.count(space.name) > 1):
            cause = "a normalisation" if space.scales else "more than one layer"
            raise SpaceMismatch(f"space '{space.name}' is also written by {cause}; {CHAINS}")
