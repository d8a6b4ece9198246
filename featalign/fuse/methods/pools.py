"""`zip`: the union of all clients' units reduced to the reference's width by column-subset selection, then refitted.

Neuron `zip`, feature `zip` and their mixture are one method with different pools.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from featalign.align.activations import Held
from featalign.align.maps import Alignment, SpaceMap
from featalign.align.pool import select_columns
from featalign.errors import BadOption
from featalign.fuse.methods.registry import Proposal, fusion_method
from featalign.fuse.problem import FusionProblem
from featalign.fuse.readout import readout_target
from featalign.fuse.reduce import reduced
from featalign.spaces import apply_nonlinearity
from featalign.spaces.capture import units_last
from featalign.spaces.graph import Layer, Site, Space, Symmetry

LEANS = (0.0, 0.25, 0.5, 0.75, 1.0)
PreUnits = Callable[[Held, int, Space], torch.Tensor]
FAINT = 1e-6  # weight of pre-activations in the Gram matrix: they tell apart units that are silent on the probe


@dataclass(frozen=True)
class Pool:
    """Units of all clients for one space.

    Attributes:
        gram: uncentred second moments `[pool, pool]`, float64.
        cross: with what the next layers read, `[pool, targets]`.
        offsets: where each client's part of the pool begins, and its end.
    """

    gram: torch.Tensor
    cross: torch.Tensor
    offsets: tuple[int, ...]


@dataclass(frozen=True)
class Chosen:
    """Units chosen for one space: positions in the pool."""

    index: torch.Tensor
    offsets: tuple[int, ...]

    def of_client(self, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """`(fused unit, unit of client k)` for the chosen units that come from client k."""
        low, high = self.offsets[k], self.offsets[k + 1]
        rows = torch.nonzero((self.index >= low) & (self.index < high)).ravel()
        return rows, self.index[rows] - low


@fusion_method("zip", basis="pool", needs=("reducible",), follows_mixing=True, grid={"lean": LEANS})
def zip_neurons(problem: FusionProblem, *, lean: float | Literal["auto"] = 0.0, linear: str = "project") -> Proposal:
    """All clients side by side reduced to the original width: units and heads are picked, linear spaces projected.

    Query heads that share keys and values are picked together, as one group of one client.
    `lean` between 0 and 1 moves the room that the clients are given towards the reference: 0 shares it by the mixing
    weights, 1 keeps the reference's own units and directions. What the fused network outputs is asked for alike.
    "auto" takes what comes nearest to the ensemble on a held-out part of the probe. `linear` is how linear spaces are
    reduced: "project" on leading directions, or "repack", features of a joint dictionary laid out anew.
    """
    if lean == "auto" or not 0 <= lean <= 1:
        raise BadOption(f"lean = {lean}; give a number between 0 (room by the mixing weights) and 1 (the reference's)")
    room = tuple((1 - lean) * w + lean * (k == problem.reference) for k, w in enumerate(problem.mixing))
    found = reduced(problem, room, linear)
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
def zip_features(problem: FusionProblem) -> Proposal:
    """Union of all clients' transcoder latents reduced to the original width: the fused units are features."""

    def latents(held: Held, client: int, space: Space) -> torch.Tensor:
        bases = problem.transcoders.get(space.name)
        if bases is None:
            raise BadOption(f"space '{space.name}' has no transcoders; train them before 'feature-zip'")
        basis = bases[client]
        pre = held[problem.graphs[client][space.name].before]
        return pre.to(basis.W_enc.dtype) @ basis.W_enc + basis.b_enc

    chosen, _ = choose_units(problem, latents, "transcoders")

    def targets(problem: FusionProblem, layer: Layer, held: Sequence[Held]) -> torch.Tensor:
        space = problem.graph[layer.writes]
        if space.pinned:
            return torch.stack([w * h[Site(layer.module)].double() for w, h in zip(problem.mixing, held)]).sum(0)
        pool = torch.cat([latents(h, k, space) for k, h in enumerate(held)], dim=1)
        return pool[:, chosen[space.name].index]

    maps = {space.name: SpaceMap.identity(space.size) for space in problem.graph.hidden}
    stay = tuple(Alignment(_resized(problem, k, maps)) for k in range(len(problem.cohort)))
    return Proposal(stay, targets, exact_first=False, notes={"units_from_client": origins(problem, chosen)})


def _resized(problem: FusionProblem, client: int, maps: dict[str, SpaceMap]) -> dict[str, SpaceMap]:
    """Identity maps, cut or padded where the client is wider or narrower: the refit replaces what they give."""
    found = {}
    for name, same in maps.items():
        size = problem.graphs[client][name].size
        eye = torch.eye(len(same.out), size, dtype=torch.float64)
        found[name] = SpaceMap(eye, eye.T.contiguous(), Symmetry.LINEAR)
    return found


def origins(problem: FusionProblem, chosen: dict[str, Chosen]) -> dict[str, list[int]]:
    """How many fused units of each space come from each client."""
    return {name: [len(c.of_client(k)[0]) for k in range(len(problem.cohort))] for name, c in chosen.items()}


def choose_units(problem: FusionProblem, pre_units: PreUnits, kind: str) -> tuple[dict[str, Chosen], dict[str, Pool]]:
    """Greedy choice per space among the clients' units, against what the next layers read from them.

    Targets are the pre-activations of every layer that reads the space, of every client, weighted by the square root of
    its mixing weight; the readout's are the task's instead. Where a layer reads patches, flattened or pooled positions
    the targets are the units themselves, weighted by how strongly they are read. Clients of weight zero are left out.
    `kind` names the pool, whose Gram matrices are kept for other mixing weights.
    """
    pools = _pools(problem, pre_units, kind)
    chosen = {}
    for space in problem.graph.hidden:
        pool = pools[space.name]
        sizes = [high - low for low, high in zip(pool.offsets, pool.offsets[1:])]
        weights = torch.cat([torch.full((size,), weight) for size, weight in zip(sizes, problem.mixing)])
        active = torch.nonzero(weights > 0).ravel()
        if len(active) < space.size:  # a client's dictionary may be narrower than the layer
            active = torch.arange(len(weights))
        picked = select_columns(pool.gram[active][:, active], pool.cross[active], space.size)
        chosen[space.name] = Chosen(active[torch.as_tensor(picked)].sort().values, pool.offsets)
    return chosen, pools


def _pools(problem: FusionProblem, pre_units: PreUnits, kind: str) -> dict[str, Pool]:
    """Moments of the pool of each space, streamed once over the refit inputs; Gram matrices are kept."""
    spaces = problem.graph.hidden
    grams: dict[str, Any] = problem.memory.get("pool", (problem.activations, kind, *_transcoders(problem, kind)), dict)
    known = set(grams)
    cross: dict[str, Any] = {}
    offsets: dict[str, tuple[int, ...]] = {}
    readouts = {writer.name for writer in problem.writers if writer.readout}
    for _, held, outputs in problem.activations:
        for space in spaces:
            pre = [pre_units(h, k, space) for k, h in enumerate(held)]
            parts = [apply_nonlinearity(space, values) for values in pre]
            target = torch.cat(_wanted(problem, space, held, outputs, parts, readouts), dim=1)
            pool = torch.cat(parts, dim=1).double()
            if space.name not in known:
                if space.name not in grams:  # the first batch tells silent units apart
                    faint = torch.cat(pre, dim=1).double()
                    grams[space.name] = FAINT * faint.T @ faint
                grams[space.name] = grams[space.name] + pool.T @ pool
            cross[space.name] = cross.get(space.name, 0) + pool.T @ target.double()
            sizes = torch.tensor([0, *(part.shape[1] for part in parts)])
            offsets[space.name] = tuple(sizes.cumsum(0).tolist())
    return {space.name: Pool(grams[space.name], cross[space.name], offsets[space.name]) for space in spaces}


def _transcoders(problem: FusionProblem, kind: str) -> tuple[Any, ...]:
    if kind == "neurons":
        return ()
    return tuple(basis for bases in problem.transcoders.values() for basis in bases)


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
            wanted.append(readout_target(problem, [units_last(out, False) for out in outputs], None))
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
