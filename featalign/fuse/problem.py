"""The fusion problem: clients, their spaces, the probe and the mixing weights. Everything a method may look at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import nn

from featalign.align.feature import FeatureMatch
from featalign.align.neuron import post_site, pre_site
from featalign.dictionaries.basis import Basis
from featalign.dictionaries.dictionary import Dictionary
from featalign.errors import ArchitectureMismatch, BadOption, NotFinite, ProbeError
from featalign.spaces.capture import fitting_batch, stream
from featalign.spaces.graph import Site, SpaceGraph

Held = dict[Site, torch.Tensor]


@dataclass(frozen=True)
class FusionProblem:
    """Clients of one architecture to be fused into one network of the reference's width, without labels.

    Attributes:
        clients: modules, all of one architecture; widths may differ where a method allows it.
        graphs: the traced spaces of each client, with the same names.
        probe: `[samples, ...]` inputs without labels, for matching units.
        refit_inputs: inputs on which targets are regressed and features matched; the probe or its augmentation.
        mixing: weight of each client, summing to one.
        reference: index of the client whose basis the others are moved into.
        dictionaries: per hidden space, one feature basis per client (post-activations), for feature methods.
        transcoders: per hidden space, one foldable basis per client, for feature pools.
        class_counts: `[clients, classes]` label counts, only if the server may know them.
        seed: of whatever a method draws.
    """

    clients: tuple[nn.Module, ...]
    graphs: tuple[SpaceGraph, ...]
    probe: torch.Tensor
    refit_inputs: torch.Tensor
    mixing: tuple[float, ...]
    reference: int
    dictionaries: Mapping[str, tuple[Basis, ...]] = field(default_factory=dict)
    transcoders: Mapping[str, tuple[Dictionary, ...]] = field(default_factory=dict)
    class_counts: torch.Tensor | None = None
    seed: int = 0
    memory: ActivationMemory = field(default_factory=lambda: ActivationMemory(), repr=False)

    def __post_init__(self) -> None:
        if not self.clients:
            raise BadOption("no clients to fuse; give at least one module")
        if len(self.mixing) != len(self.clients) or abs(sum(self.mixing) - 1) > 1e-6 or min(self.mixing) < 0:
            raise BadOption(f"mixing {self.mixing}: give {len(self.clients)} non-negative weights that sum to one")
        names = [[(space.name, space.symmetry) for space in graph.spaces] for graph in self.graphs]
        for index, other in enumerate(names[1:], start=1):
            if other != names[0]:
                raise ArchitectureMismatch(
                    f"client 0 has hidden spaces {[n for n, _ in names[0]]}, client {index} {[n for n, _ in other]}; "
                    "fusion wants clients of one architecture and depth"
                )
        for index, client in enumerate(self.clients):
            for name, tensor in client.state_dict().items():
                if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                    raise NotFinite(f"weights '{name}' of client {index} hold NaN or infinity; train it again")
        for name, inputs in (("probe", self.probe), ("refit_inputs", self.refit_inputs)):
            if len(inputs) == 0:
                raise ProbeError(f"{name} is empty; pass a tensor [samples, ...] with at least one sample")

    @property
    def graph(self) -> SpaceGraph:
        """Spaces of the reference."""
        return self.graphs[self.reference]

    @property
    def equal_widths(self) -> bool:
        """Whether every hidden space has one size in all clients."""
        return all(space.size == graph[space.name].size for graph in self.graphs for space in self.graph.hidden)

    def mixed(self, mixing: tuple[float, ...]) -> FusionProblem:
        """The same problem at another mixing weight; captured activations are shared."""
        return replace(self, mixing=mixing)

    @cached_property
    def sites(self) -> list[Site]:
        """Every site of the clients that targets are built from: layer outputs and post-activations of spaces."""
        found = [Site(layer.module, "out") for layer in self.graph.layers]
        for space in self.graph.hidden:
            found += [pre_site(space), post_site(space)]
        return list(dict.fromkeys(found))

    @cached_property
    def batch_size(self) -> int:
        """Inputs per batch, by what one client's activations at all sites weigh."""
        return fitting_batch(self.clients[self.reference], self.refit_inputs, self.sites)

    def activations(self) -> Iterator[tuple[torch.Tensor, list[Held], list[torch.Tensor]]]:
        """Batches of the refit inputs: `(inputs, activations of each client by site, outputs of each client)`."""
        yield from self.memory.batches(self)


class ActivationMemory:
    """Keeps the clients' activations on the refit inputs while they are small, computes them again when they are not.

    Methods and mixing weights share them: at 10,000 inputs of an OTFusion MLP they take 60 MB.
    """

    def __init__(self, budget_bytes: int = 400_000_000):
        self.budget = budget_bytes
        self.kept: list[tuple[torch.Tensor, list[Held], list[torch.Tensor]]] | None = None
        self.matches: dict[tuple[int, str], FeatureMatch] = {}
        self.proposals: dict[str, Any] = {}
        self.grams: dict[tuple[str, str], torch.Tensor] = {}

    def batches(self, problem: FusionProblem) -> Iterator[tuple[torch.Tensor, list[Held], list[torch.Tensor]]]:
        """See `FusionProblem.activations`."""
        if self.kept is not None:
            yield from self.kept
            return
        kept: list[tuple[torch.Tensor, list[Held], list[torch.Tensor]]] | None = []
        used = 0
        size = problem.batch_size
        streams = [stream(client, problem.refit_inputs, problem.sites, size) for client in problem.clients]
        chunks = problem.refit_inputs.split(size)
        for inputs, *outputs in zip(chunks, *streams):
            batch = (inputs, [held for _, held in outputs], [output for output, _ in outputs])
            used += sum(tensor.nbytes for held in batch[1] for tensor in held.values())
            if kept is not None:
                kept = [*kept, batch] if used <= self.budget else None
            yield batch
        self.kept = kept
