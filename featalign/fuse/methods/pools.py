"""`zip`: the union of all clients' units reduced to the fused width by column-subset selection, then refitted.

Neuron `zip`, feature `zip` and their mixture are one method with different pools.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import nn

from featalign.align.activations import Held
from featalign.align.maps import Alignment, SpaceMap
from featalign.align.pool import Cross, Gram, reading_map, select_columns
from featalign.errors import BadOption
from featalign.fuse.choose import head_of
from featalign.fuse.methods.registry import Proposal, fusion_method
from featalign.fuse.problem import FusionProblem
from featalign.fuse.readout import readout_target
from featalign.fuse.reduce import FAINT, FAINT_ROWS, fused_size, reduced
from featalign.spaces import apply_nonlinearity
from featalign.spaces.capture import units_last
from featalign.spaces.graph import Layer, Site, Space, Symmetry

LEANS = (0.0, 0.25, 0.5, 0.75, 1.0)
READING = 1e-2  # ridge by which neurons are read from chosen latents, which are many and rare: as strong as the refit's


@dataclass(frozen=True)
class Pool:
    """Units of all clients for one space: of each client its neurons, then its latents.

    Attributes:
        gram: uncentred second moments `[pool, pool]`, float64, with a faint trace of pre-activations.
        cross: with what the next layers read, `[pool, targets]`.
        offsets: where each client's part of the pool begins, and its end.
        neurons: how many of each part are neurons.
    """

    gram: Gram
    cross: torch.Tensor
    offsets: tuple[int, ...]
    neurons: tuple[int, ...]


@fusion_method("zip", basis="pool", needs=("reducible",), follows_mixing=True, grid={"lean": LEANS})
def zip_neurons(
    problem: FusionProblem, *, lean: float | Literal["auto"] = 0.0, linear: str = "project", width: float = 1.0
) -> Proposal:
    """All clients side by side reduced to the original width: units and heads are picked, linear spaces projected.

    Query heads that share keys and values are picked together, as one group of one client.
    `lean` between 0 and 1 moves the room that the clients are given towards the reference: 0 shares it by the mixing
    weights, 1 keeps the reference's own units and directions. What the fused network outputs is asked for alike.
    "auto" takes what comes nearest to the ensemble on a held-out part of the probe. `linear` is how linear spaces are
    reduced: "project" on leading directions, or "repack", features of a joint dictionary laid out anew.
    `width` times the reference's units are picked; heads, the streams they write and linear spaces keep the reference's
    size. Raises `BadOption` where the clients have fewer units together.
    """
    if lean == "auto" or not 0 <= lean <= 1:
        raise BadOption(f"lean = {lean}; give a number between 0 (room by the mixing weights) and 1 (the reference's)")
    room = tuple((1 - lean) * w + lean * (k == problem.reference) for k, w in enumerate(problem.mixing))
    found = reduced(problem, room, linear, width)
    notes = {"units_from_client": found.origins}
    return Proposal(found.alignments, statistics=False, notes=notes, codes=found.codes)


@fusion_method(
    "feature-zip",
    basis="pool",
    refit="required",
    needs=("chain", "transcoders"),
    follows_mixing=True,
    exact=False,
)
def zip_features(problem: FusionProblem, *, width: float = 1.0, neurons: bool = False) -> Proposal:
    """Union of all clients' transcoder latents reduced to the original width: the fused units are features.

    `width` times the reference's units are picked; `neurons` adds the clients' own to the pool. Raises `BadOption`
    where the pool holds fewer.
    """

    for space in problem.graph.hidden:
        if space.name not in problem.transcoders:
            raise BadOption(f"space '{space.name}' has no transcoders; train them before 'feature-zip'")
    pools = _pools(problem)
    chosen = {s.name: _chosen(problem, pools[s.name], fused_size(s, width), neurons) for s in problem.graph.hidden}

    def targets(problem: FusionProblem, layer: Layer, held: Sequence[Held]) -> torch.Tensor:
        space = problem.graph[layer.writes]
        if space.pinned:
            return torch.stack([w * h[Site(layer.module)].double() for w, h in zip(problem.mixing, held)]).sum(0)
        pool = torch.cat([_candidates(problem, h, k, space) for k, h in enumerate(held)], dim=1)
        return pool[:, chosen[space.name]]

    maps = {name: _maps(problem, name, pool, chosen[name]) for name, pool in pools.items()}
    moves = tuple(Alignment({name: found[k] for name, found in maps.items()}) for k in range(len(problem.cohort)))
    origins = {
        name: [int(((chosen[name] >= low) & (chosen[name] < high)).sum()) for low, high in pairwise(pool.offsets)]
        for name, pool in pools.items()
    }
    return Proposal(moves, targets, exact_first=False, notes={"units_from_client": origins})


def _candidates(problem: FusionProblem, held: Held, client: int, space: Space) -> torch.Tensor:
    """Pre-activations of a client's neurons and, behind them, of its latents, `[samples, n + F]`."""
    basis = problem.transcoders[space.name][client]
    pre = held[problem.graphs[client][space.name].before].to(basis.W_enc.dtype)
    return torch.cat([pre, pre @ basis.W_enc + basis.b_enc], dim=1)


def _chosen(problem: FusionProblem, pool: Pool, count: int, neurons: bool) -> torch.Tensor:
    """Positions of `count` units in the pool, in order, chosen greedily against what the next layers read.

    Clients of weight zero are left out while the others have enough: a client's dictionary may be narrower than the
    layer.
    """
    weights = torch.empty(pool.offsets[-1])
    allowed = torch.ones(pool.offsets[-1], dtype=torch.bool)
    for weight, (low, high), own in zip(problem.mixing, pairwise(pool.offsets), pool.neurons):
        weights[low:high] = weight
        allowed[low : low + own] = neurons
    active = torch.nonzero(allowed & (weights > 0)).ravel()
    if len(active) < count:
        active = torch.nonzero(allowed).ravel()
    return torch.as_tensor(select_columns([pool.gram], [pool.cross], count, active)).sort().values


def _maps(problem: FusionProblem, name: str, pool: Pool, chosen: torch.Tensor) -> tuple[SpaceMap, ...]:
    """Out-maps that fold the chosen units into the layer, in-maps that read each client's neurons from them.

    Offsets of latents are folded where the layer has a bias; elsewhere the refit makes up for them.
    """
    reading = reading_map(pool.gram.columns(chosen), chosen, READING)
    biased = any(axis.parameter.endswith("bias") for axis in problem.graph[name].writers)
    maps = []
    for weight, (low, high), own, basis in zip(
        problem.mixing, pairwise(pool.offsets), pool.neurons, problem.transcoders[name]
    ):
        rows = torch.nonzero((chosen >= low) & (chosen < high)).ravel()
        unit = chosen[rows] - low
        share = 1 / weight if weight > 0 else 0.0
        fold = torch.cat([torch.eye(own, dtype=torch.float64), basis.W_enc.T.double()])
        offset = torch.cat([torch.zeros(own, dtype=torch.float64), basis.b_enc.double()])
        out, shift = torch.zeros(len(chosen), own, dtype=torch.float64), torch.zeros(len(chosen), dtype=torch.float64)
        out[rows], shift[rows] = share * fold[unit], share * offset[unit]
        maps.append(SpaceMap(out, reading[low : low + own], Symmetry.LINEAR, shift=shift if biased else None))
    return tuple(maps)


def _pools(problem: FusionProblem) -> dict[str, Pool]:
    """Moments of the pool of each space, streamed once over the refit inputs; Gram matrices are kept.

    Targets are the pre-activations of every layer that reads the space, of every client, weighted by the square root of
    its mixing weight; the readout's are the task's instead. Where a layer reads patches, flattened or pooled positions
    the targets are the units themselves, weighted by how strongly they are read.
    """
    spaces = problem.graph.hidden
    bases = [basis for found in problem.transcoders.values() for basis in found]
    grams: dict[str, Gram] = problem.memory.get("pool", (problem.activations, *bases), dict)
    known, left = set(grams), {space.name: FAINT_ROWS for space in spaces}
    crosses = {space.name: Cross() for space in spaces}
    offsets: dict[str, tuple[int, ...]] = {}
    readouts = {writer.name for writer in problem.writers if writer.readout}
    for _, held, outputs in problem.activations:
        for space in spaces:
            pre = [_candidates(problem, h, k, space) for k, h in enumerate(held)]
            parts = [apply_nonlinearity(space, values) for values in pre]
            target = torch.cat(_wanted(problem, space, held, outputs, parts, readouts), dim=1)
            pool = torch.cat(parts, dim=1).double()
            if space.name not in known:
                faint = torch.cat(pre, dim=1)[: left[space.name]].double()  # tells silent units apart
                left[space.name] -= len(faint)
                gram = grams.setdefault(space.name, Gram())
                gram.add(pool)
                gram.add(FAINT**0.5 * faint)
            crosses[space.name].add(pool, target.double())
            sizes = torch.tensor([0, *(part.shape[1] for part in parts)])
            offsets[space.name] = tuple(sizes.cumsum(0).tolist())
    neurons = {space.name: tuple(graph[space.name].size for graph in problem.graphs) for space in spaces}
    return {s.name: Pool(grams[s.name], crosses[s.name].moments, offsets[s.name], neurons[s.name]) for s in spaces}


def _wanted(
    problem: FusionProblem,
    space: Space,
    held: Sequence[Held],
    outputs: Sequence[torch.Tensor],
    parts: Sequence[torch.Tensor],
    readouts: set[str],
) -> list[torch.Tensor]:
    """What the layers that read a space want of it, `[samples, targets]` each."""
    wanted = []
    for layer in problem.graph.layers:
        if layer.reads != space.name:
            continue
        if not _reads_units(problem, layer) or len(held[0][Site(layer.module)]) != len(parts[0]):
            for k, w in enumerate(problem.mixing):
                if w > 0:
                    units = apply_nonlinearity(space, held[k][problem.graphs[k][space.name].before])
                    wanted.append(w**0.5 * read_strength(problem, k, space).to(units) * units)
        elif layer.module in readouts:
            rows = [units_last(out, False) for out in outputs]
            wanted.append(readout_target(problem, rows, head_of(problem)))
        else:
            wanted += [w**0.5 * h[Site(layer.module)] for w, h in zip(problem.mixing, held) if w > 0]
    return wanted


def _reads_units(problem: FusionProblem, layer: Layer) -> bool:
    """Whether the layer multiplies the units themselves, not patches or flattened positions of them."""
    module = problem.clients[problem.reference].get_submodule(layer.module)
    return isinstance(module, nn.Linear) and module.in_features == problem.graph[layer.reads].size


def read_strength(problem: FusionProblem, client: int, space: Space) -> torch.Tensor:
    """`[n]`: norm of everything that a client's next layers multiply with each of its units."""
    own = problem.graphs[client][space.name]
    total = torch.zeros(own.size)
    for axis in own.readers:
        tensor = problem.clients[client].get_parameter(axis.parameter).detach().float().movedim(axis.dim, 0)
        part = tensor[axis.offset : axis.offset + axis.tile * own.size * axis.repeat]
        total += part.reshape(axis.tile, own.size, axis.repeat, -1).pow(2).sum((0, 2, 3))
    return total.sqrt()
