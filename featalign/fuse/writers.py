"""Affine maps inside a network, whoever holds their weights: what they read, what they write, and where that lands.

A layer with a matrix form (Linear, Conv, GPT-2's Conv1D) and a bare parameter that a module multiplies with (the
projections of a HookedTransformer) are alike here. Where a bare parameter is multiplied is found by trying: the input
`x` and the output `y` among the tensors that pass modules, with `y = x W^T + b`. What is written to a stream lands
where it is added to something; that is found by trying, too.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import nn

from featalign.data.batch import Batch, unwrap
from featalign.fuse.walk import watch
from featalign.spaces import affine
from featalign.spaces.apply import Pieces, moved_tensor
from featalign.spaces.capture import evaluating, units_last
from featalign.spaces.graph import Axis, Site, Space, SpaceGraph

EXACT = 1e-4  # relative error of float32 arithmetic, generously
NORMS = nn.modules.batchnorm._BatchNorm
NOWHERE = Site("")
Event = tuple[Site, torch.Tensor]


@dataclass(frozen=True)
class Writer:
    """An affine map `y = x W^T + b` of a network.

    Attributes:
        name: the layer, or the parameter where no layer has a matrix form.
        weight, bias: parameters; `bias` is None where there is none.
        reads, own: sites where `x` and `y` alone are seen.
        outs, ins: dimensions of the weight, in the order in which they lie along `y` and `x`.
        calls: how often it runs.
        layered: whether `name` is a layer with a matrix form.
        lands: where what it writes is complete: `own`, or the first site behind the sum that it is a part of.
        norms: batch normalisations between `own` and `lands`.
        readout: whether `y` is the network's output.
    """

    name: str
    weight: str
    bias: str | None
    reads: Site
    own: Site
    outs: tuple[int, ...]
    ins: tuple[int, ...]
    calls: int = 1
    layered: bool = True
    lands: Site = NOWHERE
    norms: tuple[str, ...] = ()
    readout: bool = False

    def layer(self, module: nn.Module) -> nn.Module:
        """The submodule that owns the weight."""
        return module.get_submodule(self.weight.rpartition(".")[0])

    def convolves(self, module: nn.Module) -> bool:
        """Whether positions follow channels in what it reads and writes."""
        return isinstance(self.layer(module), nn.modules.conv._ConvNd)

    def matrix(self, module: nn.Module) -> torch.Tensor:
        """`[out, fan-in]`."""
        weight = module.get_parameter(self.weight).detach()
        return weight.permute(self.outs + self.ins).reshape(prod(weight.shape[d] for d in self.outs), -1)

    def offset(self, module: nn.Module) -> torch.Tensor | None:
        """The bias `[out]`."""
        return None if self.bias is None else module.get_parameter(self.bias).detach().reshape(-1)

    def rows(self, module: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """What each output multiplies, `[samples * positions, fan-in]`."""
        return affine.rows(self.layer(module), x) if self.layered else x.reshape(-1, self.width(module))

    def gram(self, module: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """Sum of the outer products of what each output multiplies, with a one appended: `[fan-in + 1, fan-in + 1]`."""
        if self.layered:
            return affine.gram(self.layer(module), x, augmented=True)
        rows = self.rows(module, x).double()
        rows = torch.cat([rows, rows.new_ones(len(rows), 1)], 1)
        return rows.T @ rows

    def width(self, module: nn.Module) -> int:
        """Numbers that are read at one position: channels of a convolution, else the fan-in."""
        shape = module.get_parameter(self.weight).shape
        return shape[1] if self.convolves(module) else prod(shape[d] for d in self.ins)

    def write(self, module: nn.Module, matrix: torch.Tensor, bias: torch.Tensor | None) -> None:
        """Put a matrix and a bias back, each in its own layout and type."""
        weight = module.get_parameter(self.weight)
        order = self.outs + self.ins
        inverse = [order.index(d) for d in range(weight.dim())]
        with torch.no_grad():
            weight.copy_(matrix.reshape([weight.shape[d] for d in order]).permute(inverse))
            if bias is not None and self.bias is not None:
                held = module.get_parameter(self.bias)
                held.copy_(bias.reshape(held.shape))

    def gain(self, module: nn.Module) -> torch.Tensor | None:
        """`[out]` by which the batch normalisations on the way multiply what is written."""
        total: Any = None
        for name in self.norms:
            norm: Any = module.get_submodule(name)
            factor = (norm.running_var.double() + norm.eps).rsqrt()
            factor = factor if norm.weight is None else factor * norm.weight.detach().double()
            total = factor if total is None else total * factor
        return total

    def moved(self, y: torch.Tensor, module: nn.Module, pieces: Pieces) -> torch.Tensor:
        """Outputs `[rows, out]` of a client re-expressed like the rows of its weight, float64."""
        shape = module.get_parameter(self.weight).shape
        local = {("y", 1 + place): pieces[self.weight, dim] for place, dim in enumerate(self.outs)}
        values = moved_tensor(y.reshape(-1, *(shape[d] for d in self.outs)), "y", local)
        return values.double().flatten(1)

    def reading(self, space: Space) -> Axis | None:
        """Where the space lies along what it reads, if it reads it."""
        return next((a for a in space.readers if a.parameter == self.weight and a.dim in self.ins), None)

    def by_unit(self, x: torch.Tensor, module: nn.Module, axis: Axis, size: int) -> torch.Tensor:
        """Inputs `[rows, width]` as `[rows, size, rest]`: what of them belongs to each unit of a space."""
        shape = module.get_parameter(self.weight).shape
        dims = [shape[1]] if self.convolves(module) else [shape[d] for d in self.ins]
        values = x.reshape(-1, *dims).movedim(1 + self.ins.index(axis.dim), 1).reshape(len(x), shape[axis.dim], -1)
        part = values[:, axis.offset : axis.offset + axis.tile * size * axis.repeat]
        return part.reshape(len(x), axis.tile, size, -1).movedim(2, 1).reshape(len(x), size, -1)


def writers_of(module: nn.Module, graph: SpaceGraph, example: Batch) -> list[Writer]:
    """The affine maps of a network in the order in which they run."""
    if next(module.parameters()).dtype.itemsize < 4:
        module = copy.deepcopy(module).float()
    events, outputs = _events(module, example)
    spaces = {space.name: space for space in graph.spaces}
    found = [*_layers(module, graph), *_parameters(module, graph, events)]
    order = {site: place for place, (site, _) in reversed(list(enumerate(events)))}
    values = dict(reversed(events))
    found = sorted((w for w in found if w.own in order or w.calls == 0), key=lambda w: order.get(w.own, -1))
    result = []
    for writer in found:
        target = written(graph, writer)
        if writer.calls == 1 and target and spaces[target].pinned:
            whole = values[writer.own]
            writer = replace(writer, readout=whole.shape == outputs.shape and bool(torch.equal(whole, outputs)))
        if writer.calls == 1 and target and not spaces[target].pinned and len(writer.outs) == 1:
            result.append(_landed(module, spaces[target], writer, events, example))
        else:
            result.append(replace(writer, lands=writer.own))
    return result


def written(graph: SpaceGraph, writer: Writer) -> str | None:
    """The one space that a writer fills, or None where several share its rows (heads and what is inside)."""
    spaces = {s.name for s in graph.spaces for a in s.writers if a.parameter == writer.weight and a.dim in writer.outs}
    return next(iter(spaces)) if len(spaces) == 1 else None


def _events(module: nn.Module, example: Batch) -> tuple[list[Event], torch.Tensor]:
    """Every tensor that enters or leaves a submodule, in order, and the outputs."""
    seen: list[Event] = []
    handles = watch(module, _places(module), lambda site, value: seen.append((site, value.detach().clone())))
    try:
        with evaluating(module):
            outputs = unwrap(example.run(module))
    finally:
        for handle in handles:
            handle.remove()
    return seen, outputs


def _places(module: nn.Module) -> list[Site]:
    """Where tensors enter or leave submodules."""
    return [Site(name, side) for name, _ in module.named_modules() if name for side in ("in", "out")]


def _layers(module: nn.Module, graph: SpaceGraph) -> Iterator[Writer]:
    for layer in graph.layers:
        part = module.get_submodule(layer.module)
        if not affine.is_affine(part) or layer.calls == 0:
            continue
        weight: Any = part.weight
        outs, ins = ((1,), (0,)) if type(part).__name__ == "Conv1D" else ((0,), tuple(range(1, weight.dim())))
        bias = None if part.bias is None else f"{layer.module}.bias"
        reads, own = Site(layer.module, "in"), Site(layer.module)
        yield Writer(layer.module, f"{layer.module}.weight", bias, reads, own, outs, ins, layer.calls)


def _parameters(module: nn.Module, graph: SpaceGraph, events: Sequence[Event]) -> Iterator[Writer]:
    """Bare parameters with an axis that reads a space, where an input and an output that fit are seen."""
    layers = {layer.module for layer in graph.layers}
    reads = {(a.parameter, a.dim) for s in graph.spaces for a in s.readers}
    writes = {(a.parameter, a.dim) for s in graph.spaces for a in s.writers}
    parameters = dict(module.named_parameters())
    for name, weight in parameters.items():
        owner = name.rpartition(".")[0]
        for ins, outs in () if owner in layers else _sides(name, weight, reads, writes):
            shape = [weight.shape[d] for d in outs]
            biases = [n for n, p in parameters.items() if n.rpartition(".")[0] == owner and list(p.shape) == shape]
            found = _match(
                weight.permute(ins + outs), len(ins), {n: parameters[n] for n in biases if n != name}, events
            )
            if found is not None:
                yield Writer(name, name, found[2], found[0], found[1], outs, ins, 1, layered=False)
                break


def _sides(
    name: str, weight: torch.Tensor, reads: set[tuple[str, int]], writes: set[tuple[str, int]]
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The dimensions that read and those that write; one of one entry (a single head) may lie on either side."""
    dims = range(weight.dim())
    ins = tuple(d for d in dims if (name, d) in reads)
    outs = tuple(d for d in dims if (name, d) in writes and d not in ins)
    single = tuple(d for d in dims if weight.shape[d] == 1 and d not in ins + outs)
    if ins and weight.dim() > 1 and len(ins + outs + single) == weight.dim():
        yield ins, tuple(sorted(outs + single))
        if single:
            yield tuple(sorted(ins + single)), outs


def _match(
    weight: torch.Tensor, ins: int, biases: Mapping[str, torch.Tensor], events: Sequence[Event]
) -> tuple[Site, Site, str | None] | None:
    """The sites of `x` (the last that fits) and of `y = x W + b` (the first), and the bias."""
    into, out = weight.shape[:ins], weight.shape[ins:]
    matrix = weight.detach().flatten(0, ins - 1).flatten(1)
    times = Counter(site for site, _ in events)
    for place, (own, y) in enumerate(events):
        if times[own] > 1 or y.shape[y.dim() - len(out) :] != out or y.dim() == len(out):
            continue
        lead = y.shape[: y.dim() - len(out)]
        for site, x in reversed(events[:place]):
            if x.shape != (*lead, *into) or times[site] > 1 or not x.is_floating_point():
                continue
            rest = y.reshape(*lead, -1) - x.reshape(*lead, -1) @ matrix
            scale = y.abs().max()
            for name, bias in (*biases.items(), (None, None)):
                change = rest if bias is None else rest - bias.detach().flatten()
                if change.abs().max() <= EXACT * scale:
                    return site, own, name
    return None


def _landed(module: nn.Module, space: Space, writer: Writer, events: Sequence[Event], example: Batch) -> Writer:
    """The writer with the site where its sum is complete, found by disturbing what it writes."""
    start = next(place for place, (site, _) in enumerate(events) if site == writer.own)
    own = events[start][1]
    dim = 1 if writer.convolves(module) else own.dim() - 1
    axis = next(a for a in space.writers if a.parameter == writer.weight)
    if own.shape[dim] != space.size or axis.repeat * axis.tile > 1:
        return replace(writer, lands=writer.own)
    noise = torch.randn(own.shape, generator=torch.Generator().manual_seed(0)).to(own) * own.std().clamp_min(1e-6)
    landing = _Landing(module, space, writer, events, start, noise)
    _disturb(module, landing, noise, example)
    return landing.found()


class _Settled(Exception):
    """Ends a disturbed pass: where the change lands is known."""


class _Landing:
    """Follows a change of what a writer writes from event to event, until its sum is complete or no longer seen."""

    def __init__(
        self,
        module: nn.Module,
        space: Space,
        writer: Writer,
        events: Sequence[Event],
        start: int,
        noise: torch.Tensor,
    ):
        self.module, self.writer, self.events, self.start = module, writer, events, start
        self.own = events[start][1]
        self.first = writer.convolves(module)  # units lie along dimension 1
        self.change = units_last(noise, self.first)
        self.shown = {(site.module, site.side) for site in space.sites}
        self.times = Counter(site for site, _ in events)
        self.last = max((k for k, (site, _) in enumerate(events) if (site.module, site.side) in self.shown), default=0)
        self.norms: tuple[str, ...] = ()
        self.lands = NOWHERE
        self.complete = False

    def see(self, place: int, after: torch.Tensor) -> None:
        """Compare what passes at event `place` now with before; raises `_Settled` when no more is to be learned."""
        if place > self.last:
            raise _Settled
        site, before = self.events[place]
        shown = (site.module, site.side) in self.shown and before.shape == self.own.shape and self.times[site] == 1
        if place <= self.start or not shown or torch.equal(before, after):
            return
        moved = units_last(after - before, self.first)
        gain = (moved * self.change).sum(0) / self.change.square().sum(0)
        if (moved - gain * self.change).norm() > 100 * EXACT * moved.norm():
            raise _Settled
        before = units_last(before, self.first)
        rest = before - gain * units_last(self.own, self.first)
        if rest.std(0, correction=0).max() > 10 * EXACT * before.std():
            self.lands, self.complete = site, True
            raise _Settled
        if site.side == "out" and isinstance(self.module.get_submodule(site.module), NORMS):
            self.norms = (*self.norms, site.module)
            if self.writer.bias is None and len(self.norms) == 1:
                self.lands = site

    def found(self) -> Writer:
        """The writer with what was learned."""
        if self.complete:
            return replace(self.writer, lands=self.lands, norms=self.norms)
        if self.lands.module:  # a normalisation stands for the missing bias
            return replace(self.writer, lands=self.lands, norms=(self.lands.module,))
        return replace(self.writer, lands=self.writer.own)


def _disturb(module: nn.Module, landing: _Landing, noise: torch.Tensor, example: Batch) -> None:
    """Run the network with noise added at the writer's site, telling `landing` of every event.

    Layers up to the writer answer what they answered before: only what the noise can change is computed, up to where
    it lands. All writers together thus cost about one run, whatever the depth.
    """
    place = -1

    def see(site: Site, value: torch.Tensor) -> None:
        nonlocal place
        place += 1
        if place == landing.start:
            value.add_(noise)
        landing.see(place, value.detach())

    answered = {
        site.module: value
        for site, value in landing.events[: landing.start + 1]
        if site.side == "out" and landing.times[site] == 1 and affine.is_affine(module.get_submodule(site.module))
    }
    handles = watch(module, _places(module), see)
    try:
        with evaluating(module), _answering(module, answered), suppress(_Settled):
            example.run(module)
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _answering(module: nn.Module, answers: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Layers return given tensors instead of computing theirs."""
    parts = {name: module.get_submodule(name) for name in answers}
    usual: dict[str, Any] = {name: vars(part).get("forward") for name, part in parts.items()}
    for name, part in parts.items():
        part.forward = lambda *_args, answer=answers[name], **_options: answer.clone()
    try:
        yield
    finally:
        for name, part in parts.items():
            del part.forward
            if usual[name] is not None:
                part.forward = usual[name]
