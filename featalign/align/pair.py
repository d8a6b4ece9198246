"""`Pair`: two clients in one space. What a matcher may look at, computed lazily and once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import nn

from featalign.align.activations import Activations, cross_moments, pooled_moments
from featalign.align.feature import FeatureMatch, match_features
from featalign.align.maps import Alignment, SpaceMap
from featalign.align.memory import Memory
from featalign.align.weights import incoming_rows, match_weights, silent_directions
from featalign.data.inputs import Inputs
from featalign.dictionaries.basis import Basis
from featalign.errors import BadOption
from featalign.spaces.graph import Space, SpaceGraph, Symmetry
from featalign.spaces.moments import CrossMoments


@dataclass(frozen=True)
class Clients:
    """A source and a target with what both may see; the pairs of all their spaces share it.

    Attributes:
        modules, graphs: source and target.
        probe: unlabelled inputs for moments.
        activations: of all clients on the refit inputs, and the positions of source and target among them.
        bases: feature bases of both by space (post-activations); empty where none were trained.
        seed: of whatever is drawn.
        memory: where moments and matches are kept.
    """

    modules: tuple[nn.Module, nn.Module]
    graphs: tuple[SpaceGraph, SpaceGraph]
    probe: Inputs
    activations: Activations
    index: tuple[int, int]
    bases: Mapping[str, tuple[Basis, Basis]] = field(default_factory=dict)
    seed: int = 0
    memory: Memory = field(default_factory=Memory, repr=False)

    @cached_property
    def states(self) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """State dicts of both, each tensor in the shape of its parameter."""
        return self.modules[0].state_dict(), self.modules[1].state_dict()

    @property
    def moments(self) -> dict[str, CrossMoments]:
        """Joint moments of pre-activations on the probe, by space; all spaces are streamed once."""
        spaces = [space for space in self.graphs[0].hidden if space.pre is not None]
        sites = [space.before for space in spaces]
        theirs = [self.graphs[1][space.name].before for space in spaces]

        def make() -> dict[str, CrossMoments]:
            found = cross_moments(*self.modules, self.probe, sites, theirs)
            return {space.name: moment for space, moment in zip(spaces, found)}

        return self.memory.get("moments", (*self.modules, self.probe), make)

    def match(self, space: str) -> FeatureMatch:
        """Latents of the two bases of a space matched by partial transport on the refit inputs."""
        return Pair(self, space).match

    @property
    def weight_alignment(self) -> Alignment:
        """All spaces matched jointly by weights (git re-basin's coordinate ascent)."""
        return self.memory.get(
            "weights",
            (*self.modules, self.seed),
            lambda: match_weights(*self.modules, *self.graphs, seed=self.seed),
        )


@dataclass(frozen=True)
class Pair:
    """Source and target in one space.

    Attributes:
        clients: the two networks.
        name: of the space.
        settled: maps of the spaces that were matched before this one.
    """

    clients: Clients
    name: str
    settled: Mapping[str, SpaceMap] = field(default_factory=dict)

    @property
    def source(self) -> Space:
        """The space in the source (n units)."""
        return self.clients.graphs[0][self.name]

    @property
    def target(self) -> Space:
        """The space in the target (m units)."""
        return self.clients.graphs[1][self.name]

    @property
    def paired(self) -> bool:
        """Whether samples of both clients correspond at the site before the nonlinearity.

        Not so where another axis of the site is a hidden space itself (heads, token mixing).
        """
        return self.source.pre is not None and self.source.pre.paired

    @property
    def moments(self) -> CrossMoments:
        """Joint moments of pre-activations on the probe; of a stream, which several weights write, at every depth."""
        state = self.clients.states[0]
        weights = {axis.parameter for axis in self.source.writers if state[axis.parameter].dim() > 1}
        if len(weights) > 1 and self.source.whole_sites:
            return self.stream_moments
        return self.clients.moments[self.name]

    @property
    def stream_moments(self) -> CrossMoments:
        """Joint moments over every site where the whole space is seen: a residual stream is read at every depth.

        A stream that only rotations leave unchanged is read as its norms show it, each row at unit length.
        """
        sites = self.source.whole_sites
        if not sites:
            return self.clients.moments[self.name]
        clients = self.clients

        def make() -> CrossMoments:
            streamed = len(self.source.writers) > 1 and self.source.symmetry is Symmetry.ORTHOGONAL
            return pooled_moments(*clients.modules, clients.probe, sites, self.target.whole_sites, streamed)

        return clients.memory.get("stream", (*clients.modules, clients.probe, self.name), make)

    def within(self, side: int) -> CrossMoments:
        """Joint moments of the source (0) or the target (1) with itself: `covariance_ab` is what its units share."""
        clients = self.clients
        module, graph, place = clients.modules[side], clients.graphs[side], clients.index[side]
        alone = replace(clients, modules=(module, module), graphs=(graph, graph), index=(place, place), bases={})
        return Pair(alone, self.name).moments

    @property
    def silent(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Orthonormal directions `[n, k]`, `[m, l]` of source and target that no layer writes (norms aside)."""
        modules, graphs = self.clients.modules, self.clients.graphs
        return (
            silent_directions(modules[0], graphs[0][self.name]),
            silent_directions(modules[1], graphs[1][self.name]),
        )

    @property
    def incoming(self) -> tuple[torch.Tensor, torch.Tensor]:
        """What writes each unit, `[n, features]` after the settled maps of earlier spaces and `[m, features]`."""
        (own, other), (graph, target_graph) = self.clients.states, self.clients.graphs
        stay = {name: SpaceMap.identity(target_graph[name].size) for name in self.settled}
        return (
            incoming_rows(own, graph, self.name, self.settled, other),
            incoming_rows(other, target_graph, self.name, stay),
        )

    @property
    def bases(self) -> tuple[Basis, Basis]:
        """Feature bases of both; raises `BadOption` where none were trained."""
        found = self.clients.bases.get(self.name)
        if found is None:
            raise BadOption(
                f"space '{self.name}' has no feature basis for both clients; train dictionaries first "
                "(fa.dictionaries.train) or choose a neuron method"
            )
        return found

    def posts(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Batches of post-activations of both on the refit inputs, `[samples, n]`, `[samples, m]`."""
        a, b = self.clients.index
        for _, held, _ in self.clients.activations:
            yield held[a][self.source.after], held[b][self.target.after]

    @property
    def match(self) -> FeatureMatch:
        """Latents of the two bases matched by partial transport on the refit inputs."""
        parts: tuple[Any, ...] = (*self.bases, self.clients.activations, self.name, *self.clients.index)
        return self.clients.memory.get("match", parts, lambda: match_features(*self.bases, self.posts()))
