"""The fusion problem: a cohort, mixing weights and a reference. Everything a method may look at."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from torch import nn

from featalign.align.activations import Activations
from featalign.align.memory import Memory
from featalign.align.pair import Clients
from featalign.clients.cohort import Cohort
from featalign.dictionaries.basis import Basis
from featalign.dictionaries.dictionary import Dictionary
from featalign.errors import BadOption
from featalign.fuse.writers import Writer, writers_of
from featalign.spaces.graph import Layer, SpaceGraph

TRIED = 4  # samples on which affine maps are looked for


@dataclass(frozen=True)
class FusionProblem:
    """Clients to be fused into one network without labels, of the reference's width unless a method takes another.

    Attributes:
        cohort: the clients with what may be known of them.
        mixing: weight of each client, summing to one; equal weights by default.
        reference: index of the client whose basis the others are moved into; the last one by default.
        dictionaries: per hidden space, one feature basis per client (post-activations), for feature methods.
        transcoders: per hidden space, one foldable basis per client, for feature pools.
        memory: what methods and mixing weights share.
    """

    cohort: Cohort
    mixing: tuple[float, ...] = ()
    reference: int = -1
    dictionaries: Mapping[str, tuple[Basis, ...]] = field(default_factory=dict)
    transcoders: Mapping[str, tuple[Dictionary, ...]] = field(default_factory=dict)
    memory: Memory = field(default_factory=Memory, repr=False)

    def __post_init__(self) -> None:
        count = len(self.cohort)
        mixing = tuple(float(weight) for weight in self.mixing) or (1 / count,) * count
        wrong = len(mixing) != count or not all(math.isfinite(w) and w >= 0 for w in mixing)
        if wrong or abs(sum(mixing) - 1) > 1e-6:
            raise BadOption(f"mixing {mixing}: give {count} non-negative weights that sum to one")
        if not -count <= self.reference < count:
            raise BadOption(f"reference {self.reference}: there are {count} clients")
        object.__setattr__(self, "mixing", mixing)
        object.__setattr__(self, "reference", self.reference % count)

    @property
    def clients(self) -> tuple[nn.Module, ...]:
        """The networks."""
        return self.cohort.modules

    @property
    def graphs(self) -> tuple[SpaceGraph, ...]:
        """Their spaces."""
        return self.cohort.graphs

    @property
    def graph(self) -> SpaceGraph:
        """Spaces of the reference."""
        return self.graphs[self.reference]

    @property
    def averaged(self) -> bool:
        """Whether more than one client takes part."""
        return sum(weight > 0 for weight in self.mixing) > 1

    def paired_rows(self, layer: Layer) -> bool:
        """Whether rows of the layer's output correspond between clients: no hidden space but its own lies along them.

        Token mixing has rows of channels, which every client orders in its own way.
        """
        return not any(
            site.module == layer.module and site.side == "out"
            for space in self.graph.hidden
            if space.name != layer.writes
            for site in space.sites
        )

    @cached_property
    def writers(self) -> tuple[Writer, ...]:
        """The affine maps of the reference, in the order in which they run."""
        module, probe = self.clients[self.reference], self.cohort.probe
        return self.memory.get(
            "writers", (module, probe), lambda: tuple(writers_of(module, self.graph, probe.example(TRIED)))
        )

    def paired(self, writer: Writer) -> bool:
        """As `paired_rows`, for any affine map: other hidden spaces lie only along the rows of its weight."""
        site = (writer.own.module, writer.own.side)
        return not any(
            (seen.module, seen.side) == site
            for space in self.graph.hidden
            if not any(axis.parameter == writer.weight and axis.dim in writer.outs for axis in space.writers)
            for seen in space.sites
        )

    def reads_input(self, writer: Writer) -> bool:
        """Whether the map reads what all clients read."""
        read = [s for s in self.graph.spaces if any(axis.parameter == writer.weight for axis in s.readers)]
        return bool(read) and all(space.pinned for space in read)

    def mixed(self, mixing: tuple[float, ...]) -> FusionProblem:
        """The same problem at another mixing weight; what was computed is shared."""
        return replace(self, mixing=mixing)

    @cached_property
    def activations(self) -> Activations:
        """Activations of all clients on the refit inputs."""
        cohort = self.cohort
        parts = (*cohort.modules, cohort.refit_inputs)
        return self.memory.get(
            "activations", parts, lambda: Activations(cohort.modules, cohort.graphs, cohort.refit_inputs)
        )

    @cached_property
    def temper(self) -> float:
        """How far the clients' confidence may be compared (`Cohort.temper`)."""
        return self.cohort.temper(self.mixing)

    def pair(self, client: int) -> Clients:
        """A client and the reference, as matchers take them."""
        index = (client, self.reference)
        bases = {
            name: (found[client], found[self.reference])
            for name, found in self.dictionaries.items()
            if len(found) == len(self.cohort)
        }
        return Clients(
            (self.clients[client], self.clients[self.reference]), (self.graphs[client], self.graph),
            self.cohort.probe, self.activations, index, bases, self.cohort.seed, self.memory,
        )  # fmt: skip


def mixing_weights(first: float, clients: int) -> tuple[float, ...]:
    """Weight `first` for the first client, the rest shared equally by the others; raises `BadOption` out of [0, 1]."""
    if not (math.isfinite(first) and 0 <= first <= 1):
        raise BadOption(f"mixing = {first}; the weight of the first client lies between 0 and 1")
    return (1.0,) if clients == 1 else (first, *([(1 - first) / (clients - 1)] * (clients - 1)))
