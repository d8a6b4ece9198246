"""Activations of several clients on the same inputs, streamed, and kept while they are small."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

import torch
from torch import nn

from featalign.data.batch import Batch
from featalign.data.inputs import Inputs
from featalign.spaces.capture import fitting_batch, stream
from featalign.spaces.graph import Site, SpaceGraph
from featalign.spaces.moments import CrossMoments

Held = dict[Site, torch.Tensor]
Captured = tuple[Batch, list[Held], list[torch.Tensor]]
BUDGET = 400_000_000  # bytes kept; 10,000 inputs of an OTFusion MLP take 60 MB


class Activations:
    """`(batch, activations of each client by site, outputs of each client)` for every batch of the inputs.

    Iterating streams the clients once; what fits into `BUDGET` bytes is kept for the next time.
    """

    def __init__(self, modules: Sequence[nn.Module], graphs: Sequence[SpaceGraph], inputs: Inputs):
        self.modules, self.graphs, self.inputs = tuple(modules), tuple(graphs), inputs
        self._kept: list[Captured] | None = None

    @cached_property
    def sites(self) -> list[Site]:
        """Outputs of affine layers and the sites before and after every hidden space's nonlinearity."""
        graph = self.graphs[-1]
        found = [Site(layer.module) for layer in graph.layers if layer.calls]
        for space in graph.hidden:
            if space.pre is not None:
                found += [space.before, space.after]
        return list(dict.fromkeys(found))

    @cached_property
    def batch_size(self) -> int:
        """Inputs per batch, by what one client's activations at all sites weigh."""
        return fitting_batch(self.modules[-1], self.inputs, self.sites)

    def __iter__(self) -> Iterator[Captured]:
        if self._kept is not None:
            yield from self._kept
            return
        kept: list[Captured] | None = []
        used, inputs = 0, self.inputs.batched(self.batch_size)
        streams = [stream(module, inputs, self.sites) for module in self.modules]
        for batch, *found in zip(inputs, *streams, strict=True):
            captured = (batch, [held for _, held in found], [outputs for outputs, _ in found])
            used += sum(tensor.nbytes for held in captured[1] for tensor in held.values())
            if kept is not None:
                kept = [*kept, captured] if used <= BUDGET else None
            yield captured
        self._kept = kept


def cross_moments(
    source: nn.Module,
    target: nn.Module,
    probe: Inputs,
    sites: Sequence[Site],
    target_sites: Sequence[Site] | None = None,
) -> list[CrossMoments]:
    """Joint moments of two modules' activations on the same probe, one `CrossMoments` per site, streamed once."""
    target_sites = target_sites or sites
    moments = [CrossMoments(within=False) for _ in sites]
    inputs = probe.batched(fitting_batch(source, probe, list(sites)))
    for (_, mine), (_, theirs) in zip(stream(source, inputs, list(sites)), stream(target, inputs, list(target_sites))):
        for moment, a, b in zip(moments, sites, target_sites):
            if a in mine and b in theirs:
                moment.update(mine[a], theirs[b])
    return moments


def pooled_moments(
    source: nn.Module,
    target: nn.Module,
    probe: Inputs,
    sites: Sequence[Site],
    target_sites: Sequence[Site],
    normalised: bool = False,
) -> CrossMoments:
    """Joint moments over several sites that show one space, all of them together; sites that show the same count once.

    `normalised`: each row at unit length, as RMSNorm shows it, so that late depths do not drown early ones.
    """
    moments = CrossMoments(within=False)
    inputs = probe.batched(256)
    distinct: list[tuple[Site, Site]] | None = None
    for (_, mine), (_, theirs) in zip(stream(source, inputs, list(sites)), stream(target, inputs, list(target_sites))):
        if distinct is None:
            distinct = _distinct([(a, b) for a, b in zip(sites, target_sites) if a in mine and b in theirs], mine)
        for a, b in distinct:
            rows = (mine[a], theirs[b])
            moments.update(
                *(torch.nn.functional.normalize(each.double(), dim=1) for each in rows) if normalised else rows
            )
    return moments


def _distinct(pairs: Sequence[tuple[Site, Site]], held: Held) -> list[tuple[Site, Site]]:
    """Sites that show other activations than those before them."""
    kept: list[tuple[Site, Site]] = []
    for pair in pairs:
        rows = held[pair[0]]
        if not any(rows.shape == held[a].shape and torch.equal(rows, held[a]) for a, _ in kept):
            kept.append(pair)
    return kept
