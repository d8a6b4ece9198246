"""Reductions of the joint space: what every fused space holds, `z = J [a_1; ...; a_K]`.

Behind an elementwise nonlinearity or a norm with gains, `J` picks units: one choice for every depth of a stream, by the
summed greedy gains over all the maps that read it. Heads are picked whole (groups of query heads with the keys and
values that they share), by how much of what attention adds to the reduced stream their outputs explain; so are groups
of channels, by how strongly they are read. A linear space
is reduced by a registered reduction (`linear`) from the joint rows of everything that is read from it: behind a norm
every position counts as the norm scales it. No alignment is needed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment

from featalign.align.activations import Held
from featalign.align.linear import polar
from featalign.align.maps import Alignment, SpaceMap
from featalign.align.pool import Cross, Gram, reading_map, select_columns, select_groups
from featalign.data.batch import Batch
from featalign.data.inputs import Inputs
from featalign.errors import BadOption
from featalign.fuse.choose import head_of
from featalign.fuse.linear import REDUCTIONS, Code
from featalign.fuse.problem import FusionProblem
from featalign.fuse.readout import readout_target
from featalign.fuse.roles import Roles, roles, selected_streams, values_of
from featalign.fuse.writers import Writer, written
from featalign.spaces.capture import fitting_batch, kept, stream, units_last
from featalign.spaces.graph import Axis, Site, Space, Symmetry

FAINT = 1e-6  # weight of pre-activations in the Gram matrix: they tell apart units that are silent on the probe
FAINT_ROWS = 2048  # from so many rows, whatever the batches; of pools beyond `POOL` from fewer in proportion
POOL = 1024  # units up to which a choice is made on all refit inputs
Maps = dict[str, tuple[SpaceMap, ...]]


@dataclass(frozen=True)
class Reduction:
    """What every fused space holds.

    Attributes:
        alignments: the maps of every client, and the order of the query heads within its groups.
        origins: by space, how many picked units come from each client.
        codes: by linear space, codes that are not linear.
    """

    alignments: tuple[Alignment, ...]
    origins: Mapping[str, list[int]]
    codes: Mapping[str, Code]


def reduced(
    problem: FusionProblem, room: Sequence[float] | None = None, linear: str = "project", width: float = 1.0
) -> Reduction:
    """What every fused space holds of the clients.

    `room` weighs the clients in the choice of what the fused spaces hold; the mixing weights unless given. `linear`
    names a registered reduction of linear spaces; raises `UnknownName` for others. `width` times the reference's units
    are picked; heads, groups, linear spaces and streams that heads write to keep the reference's size.
    """
    reduction = REDUCTIONS[linear]
    mixing, problem = problem.mixing, problem.mixed(tuple(room or problem.mixing))
    found = roles(problem)
    maps: Maps = {space.name: _same(problem, space) for space in found.inner}
    joint = _joint_moments(problem, found)
    codes: dict[str, Code] = {}
    for space in found.projected:
        found_space = reduction(problem, space, joint[space.name], partial(_joint_rows, problem, found, space))
        maps[space.name] = found_space.maps
        if found_space.code is not None:
            codes[space.name] = found_space.code
    sizes = {layer.heads.name: layer.heads.size for layer in found.heads}
    streams = selected_streams(problem, found)
    rest = [space for space in found.selected if space not in streams]
    sizes |= {space.name: fused_size(space, width) for space in rest} | {space.name: space.size for space in streams}
    origins: dict[str, list[int]] = {}
    gauges: tuple[dict[str, torch.Tensor], ...] = tuple({} for _ in problem.clients)
    attention = {layer.heads.name: layer for layer in found.heads}
    for spaces in (streams, [*rest, *(layer.heads for layer in found.heads)]):
        pools = _pools(problem, found, spaces, maps, sizes)
        for space in spaces:
            pool = pools[space.name]
            chosen, parts = _chosen(problem, pool, sizes[space.name]), list(pairwise(pool.offsets))
            if space.name in attention:
                members, values = attention[space.name].members, values_of(attention[space.name])
                width = pool.rest // (1 if members is None else members.size) if values is None else values.size
                shared, order, turns = _by_head(pool, chosen, width, members is not None, values is not None)
                for gauge, (low, high) in zip(gauges, parts):
                    if members is not None and bool((order[low:high].diff() != 1).any()):
                        gauge[members.name] = torch.eye(members.size, dtype=torch.float64)[order[low:high]]
                    if values is not None:
                        gauge[values.name] = turns[low:high]
            else:
                shared = torch.stack([gram.columns(chosen) for gram in pool.grams.values()]).sum(0)
            maps[space.name] = _picked(problem, pool, shared, chosen)
            origins[space.name] = [int(((chosen >= low) & (chosen < high)).sum()) for low, high in parts]
    held = {space.name for space in found.inner}
    maps = {name: each if name in held else _mixed(each, problem.mixing, mixing) for name, each in maps.items()}
    alignments = tuple(
        Alignment({name: each[k] for name, each in maps.items()}, gauge) for k, gauge in enumerate(gauges)
    )
    return Reduction(alignments, origins, codes)


def fused_size(space: Space, width: float) -> int:
    """Units of a fused space: `width` times the reference's, at least one; raises `BadOption` for a width below 0."""
    if not (math.isfinite(width) and width > 0):
        raise BadOption(f"width = {width}; give the fused width as a multiple of the reference's, such as 1.5")
    return max(1, round(width * space.size))


def _mixed(maps: tuple[SpaceMap, ...], room: Sequence[float], mixing: Sequence[float]) -> tuple[SpaceMap, ...]:
    """The maps for the rule, which multiplies by the mixing weights: `O_k = J_k / lambda_k`."""
    return tuple(
        SpaceMap(found.out * (share / weight if weight > 0 else 0.0), found.into, found.symmetry)
        for found, share, weight in zip(maps, room, mixing)
    )


def _same(problem: FusionProblem, space: Space) -> tuple[SpaceMap, ...]:
    return tuple(SpaceMap.identity(space.size, Symmetry.ORTHOGONAL) for _ in problem.clients)


@dataclass
class Pool:
    """Units (or heads, `rest` numbers each) of all clients: moments of what each map reads, and with what it wants.

    Those of units have a faint trace of pre-activations.
    """

    offsets: tuple[int, ...]
    rest: int = 1
    grams: dict[str, Gram] = field(default_factory=dict)
    crosses: dict[str, Cross] = field(default_factory=dict)


def _stream(problem: FusionProblem, sites: Sequence[Site], inputs: Inputs | None = None) -> Any:
    """`(batch, activations of each client, outputs of each client)`, once over the refit inputs or some of them."""
    inputs = inputs or problem.cohort.refit_inputs
    inputs = inputs.batched(fitting_batch(problem.clients[problem.reference], inputs, list(sites)))
    streams = [stream(module, inputs, list(sites)) for module in problem.clients]
    for batch, *found in zip(inputs, *streams, strict=True):
        yield batch, [held for _, held in found], [outputs for outputs, _ in found]


def _read(problem: FusionProblem, k: int, space: Space, writer: Writer, axis: Axis, held: Held) -> torch.Tensor:
    """`[rows, units, rest]` of a space in what a map reads in client k."""
    module = problem.clients[k]
    x = held[writer.reads].reshape(-1, writer.width(module))
    return writer.by_unit(x, module, _own(problem, k, space, axis), problem.graphs[k][space.name].size)


def _own(problem: FusionProblem, k: int, space: Space, axis: Axis) -> Axis:
    """The axis as it lies in client k, whose widths may differ."""
    place = problem.graph[space.name].readers.index(axis)
    return problem.graphs[k][space.name].readers[place]


def _samples(units: torch.Tensor) -> torch.Tensor:
    """`[rows * rest, units]`."""
    return units.movedim(1, -1).flatten(0, 1)


def _joint_moments(problem: FusionProblem, found: Roles) -> dict[str, torch.Tensor]:
    """Joint second moments of `sqrt(lambda_k) a_k` over every place where a projected space is read."""
    if not found.projected:
        return {}
    moments: dict[str, Any] = {space.name: 0 for space in found.projected}
    for name, joint in _joint(problem, found, found.projected):
        moments[name] = moments[name] + joint.T @ joint
    return moments


def _joint_rows(problem: FusionProblem, found: Roles, space: Space) -> Iterator[torch.Tensor]:
    """`sqrt(lambda_k) a_k` of all clients side by side, `[rows, sum n_k]`, at every place where a space is read."""
    return (joint for _, joint in _joint(problem, found, (space,)))


def _joint(problem: FusionProblem, found: Roles, spaces: Sequence[Space]) -> Iterator[tuple[str, torch.Tensor]]:
    """`(space, joint rows)` of every batch and place, once over the refit inputs."""
    places = {}
    for space in spaces:
        shown: dict[Site, tuple[Writer, Axis]] = {}
        for writer, axis in found.readers[space.name]:
            shown.setdefault(writer.reads, (writer, axis))
        places[space.name] = list(shown.values())
    sites = list(dict.fromkeys(writer.reads for readers in places.values() for writer, _ in readers))
    sites = _distinct(problem, sites)
    for _, held, _ in _stream(problem, sites):
        for space in spaces:
            for writer, axis in places[space.name]:
                if writer.reads not in sites:
                    continue
                parts = [_samples(_read(problem, k, space, writer, axis, h)) for k, h in enumerate(held)]
                yield space.name, torch.cat([w**0.5 * part for w, part in zip(problem.mixing, parts)], 1).double()


def _distinct(problem: FusionProblem, sites: list[Site]) -> list[Site]:
    """One site of those that show the same tensor (queries, keys and values read one stream)."""
    _, held = next(stream(problem.clients[problem.reference], [problem.cohort.example], sites))
    kept_sites: list[Site] = []
    for site in sites:
        if not any(torch.equal(held[site], held[other]) for other in kept_sites):
            kept_sites.append(site)
    return kept_sites


def _pools(
    problem: FusionProblem, found: Roles, spaces: Sequence[Space], maps: Maps, picked: Mapping[str, int]
) -> dict[str, Pool]:
    """Moments of the pools of spaces whose units or heads are picked, streamed once; `picked` says how many."""
    heads = tuple(layer.heads for layer in found.heads)
    if not spaces:
        return {}
    pools = {}
    for space in spaces:
        sizes = [graph[space.name].size for graph in problem.graphs]
        pools[space.name] = Pool(tuple(torch.tensor([0, *sizes]).cumsum(0).tolist()))
    sites = list(dict.fromkeys(s for space in spaces for w, _ in found.readers[space.name] for s in (w.reads, w.own)))
    before = {
        space.name: space.before
        for space in spaces
        if space not in heads and space.pre is not None and space.pre.paired
    }
    largest = max(pool.offsets[-1] for pool in pools.values())
    chosen_on = _enough(problem, largest, max(picked.values()))
    parts = (*problem.clients, problem.cohort.refit_inputs, len(chosen_on) if chosen_on.sized else 0)
    grams: dict[str, dict[str, Gram]] = problem.memory.get("pools", parts, dict)  # the same at all mixing weights
    known, left = set(grams), dict.fromkeys(before, round(FAINT_ROWS * min(1.0, POOL / largest)))
    for batch, held, outputs in _stream(problem, list(dict.fromkeys([*sites, *before.values()])), chosen_on):
        for space in spaces:
            pool, picks_heads = pools[space.name], space in heads
            for writer, axis in found.readers[space.name]:
                units = [_read(problem, k, space, writer, axis, h).double() for k, h in enumerate(held)]
                pool.rest = units[0].shape[2] if picks_heads else 1
                joint = torch.cat([u.flatten(1) if picks_heads else _samples(u) for u in units], 1)
                wanted = _wanted(problem, space, writer, axis, batch, held, outputs, units, maps, picks_heads)
                pool.crosses.setdefault(writer.name, Cross(exact=picks_heads)).add(joint, wanted)
                if space.name not in known:
                    grams.setdefault(space.name, {}).setdefault(writer.name, Gram()).add(joint)
            pool.grams = grams[space.name]
            if space.name in before and space.name not in known and left[space.name]:
                shown = [h[problem.graphs[k][space.name].before] for k, h in enumerate(held)]
                faint = torch.cat([part[: left[space.name]] for part in shown], 1).double()
                for gram in pool.grams.values():
                    gram.add(FAINT**0.5 * faint)
                left[space.name] -= len(faint)
    return pools


def _enough(problem: FusionProblem, pool: int, width: int) -> Inputs:
    """Inputs on which units are chosen: all, or so few of them that a pool of many clients stays affordable.

    Every second moment that is looked at costs as much as there are inputs, in a pool that grows with the clients; four
    inputs for every unit of the fused space tell units apart.
    """
    inputs = problem.cohort.refit_inputs
    if pool <= POOL or not inputs.sized:
        return inputs
    return inputs.sample(max(4 * width, round(len(inputs) * (POOL / pool) ** 2)), problem.cohort.seed)


def _wanted(
    problem: FusionProblem,
    space: Space,
    writer: Writer,
    axis: Axis,
    batch: Batch,
    held: Sequence[Held],
    outputs: Sequence[torch.Tensor],
    units: Sequence[torch.Tensor],
    maps: Maps,
    grouped: bool,
) -> torch.Tensor:
    """What a map wants of the space it reads, `[samples, targets]`; a row for every position that is read as one.

    The task's target of a readout; what is added to a reduced stream; else the outputs of all clients, weighted by the
    square root of their mixing weights. Where patches or flattened positions are read, the units themselves as
    strongly as they are multiplied.
    """
    module = problem.clients[problem.reference]
    whole = not writer.convolves(module) and units[problem.reference][0].numel() == writer.width(module)
    taking = [k for k, weight in enumerate(problem.mixing) if weight > 0]
    if not whole or (units[0].shape[2] > 1 and written(problem.graph, writer) not in maps):
        strengths = {k: problem.mixing[k] ** 0.5 * _strength(problem, k, space, writer, axis) for k in taking}
        if grouped:
            return torch.cat([(strengths[k] * units[k]).flatten(1) for k in taking], 1)
        return torch.cat([strengths[k].pow(2).sum(1).sqrt() * _samples(units[k]) for k in taking], 1)
    if writer.readout:
        rows = [units_last(kept(out, batch.mask), False) for out in outputs]
        return readout_target(problem, rows, head_of(problem))
    target = written(problem.graph, writer)
    own = [h[writer.own].reshape(len(units[k]), -1).double() for k, h in enumerate(held)]
    if target in maps:
        return sum(problem.mixing[k] * own[k] @ maps[target][k].out.T for k in taking)  # type: ignore[return-value]
    return torch.cat([problem.mixing[k] ** 0.5 * own[k] for k in taking], 1)


def _strength(problem: FusionProblem, k: int, space: Space, writer: Writer, axis: Axis) -> torch.Tensor:
    """`[n, repeat]`: norm of everything that a map of client k multiplies with each number of each unit."""
    axis = _own(problem, k, space, axis)
    weight = problem.clients[k].get_parameter(writer.weight).detach().double().movedim(axis.dim, 0)
    size = problem.graphs[k][space.name].size
    part = weight[axis.offset : axis.offset + axis.tile * size * axis.repeat]
    return part.reshape(axis.tile, size, axis.repeat, -1).pow(2).sum((0, 3)).sqrt()


def _chosen(problem: FusionProblem, pool: Pool, count: int) -> torch.Tensor:
    """Positions of `count` units in the pool, in order.

    Clients of weight zero are left out while the others have enough.
    """
    edges = pool.offsets
    weights = torch.cat([torch.full((b - a,), w) for w, (a, b) in zip(problem.mixing, pairwise(edges))])
    active = torch.nonzero(weights > 0).ravel()
    if len(active) < count:
        active = torch.arange(len(weights))
    grams, crosses = list(pool.grams.values()), [cross.moments for cross in pool.crosses.values()]
    if pool.rest == 1:
        return torch.as_tensor(select_columns(grams, crosses, count, active)).sort().values
    columns = (active[:, None] * pool.rest + torch.arange(pool.rest)).flatten()
    picked = select_groups(grams[0].whole()[columns][:, columns], torch.cat(crosses, 1)[columns], count, pool.rest)
    return active[torch.as_tensor(picked)].sort().values


def _by_head(
    pool: Pool, chosen: torch.Tensor, width: int, ordered: bool, turned: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Second moments `[heads, chosen]`, one number for two heads, and how what is in heads is laid out for them.

    Query heads within a group may be `ordered`, and their outputs, each of a `width`, be `turned`: those that were not
    chosen take the order `[heads, members]` and the turn `[heads, width, width]` in which they are most like one that
    was.
    """
    count, members = pool.offsets[-1], pool.rest // width
    gram: Any = sum(each.whole() for each in pool.grams.values())
    moments = gram.reshape(count, members, width, count, members, width).movedim(3, 1)
    order, turns = torch.arange(members).repeat(count, 1), torch.eye(width).double().repeat(count, 1, 1)
    energy = torch.stack([moments[group, group].flatten(0, 1).flatten(1).trace() for group in chosen]).clamp_min(1e-300)
    for group in set(range(count)) - set(chosen.tolist()):
        best = -1.0
        for partner, scale in zip(chosen, energy):
            cross = moments[partner, group].movedim(2, 1)  # [members of the partner, of the group, width, width]
            columns = torch.arange(members)
            if ordered:
                alike = torch.linalg.svdvals(cross).sum(-1) if turned else cross.diagonal(dim1=2, dim2=3).sum(-1)
                columns = torch.from_numpy(linear_sum_assignment(alike, maximize=True)[1])
            matched = cross[torch.arange(members), columns].sum(0)
            turn = polar(matched) if turned else torch.eye(width).double()
            share = float((turn * matched).sum().square() / scale)
            if share > best:
                best, order[group], turns[group] = share, columns, turn
    groups = torch.arange(count)[:, None]
    ordered = moments[chosen][:, groups, torch.arange(members), :, order]
    return torch.einsum("gmcwv,gwv->gc", ordered, turns), order, turns


def _picked(problem: FusionProblem, pool: Pool, shared: torch.Tensor, chosen: torch.Tensor) -> tuple[SpaceMap, ...]:
    """Out-maps that pick, in-maps that read what was not picked from what was, by second moments `[pool, chosen]`."""
    reading = reading_map(shared, chosen)
    maps = []
    for weight, (low, high) in zip(problem.mixing, pairwise(pool.offsets)):
        rows = torch.nonzero((chosen >= low) & (chosen < high)).ravel()
        out = torch.zeros(len(chosen), high - low, dtype=torch.float64)
        out[rows, chosen[rows] - low] = 1 / weight if weight > 0 else 0.0
        maps.append(SpaceMap(out, reading[low:high], Symmetry.LINEAR))
    return tuple(maps)
