"""Neuron-basis alignment: OTFusion by activations and by weights (Singh and Jaggi 2020, algorithm 1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from featalign.align.maps import Alignment, SpaceMap
from featalign.data.inputs import Inputs
from featalign.errors import SpaceMismatch
from featalign.spaces.apply import moved, unit_rows
from featalign.spaces.capture import fitting_batch, stream
from featalign.spaces.graph import Site, Space, SpaceGraph
from featalign.spaces.moments import CrossMoments
from featalign.transport import solve
from featalign.transport.plan import Plan


def cross_moments(
    source: nn.Module,
    target: nn.Module,
    probe: Inputs | torch.Tensor,
    sites: Sequence[Site],
    target_sites: Sequence[Site] | None = None,
) -> list[CrossMoments]:
    """Joint moments of two modules' activations on the same probe, one `CrossMoments` per site, streamed once."""
    target_sites = target_sites or sites
    moments = [CrossMoments() for _ in sites]
    size = fitting_batch(source, probe, list(sites))
    pair = zip(stream(source, probe, list(sites), size), stream(target, probe, list(target_sites), size))
    for (_, held_source), (_, held_target) in pair:
        for moment, a, b in zip(moments, sites, target_sites):
            moment.update(held_source[a], held_target[b])
    return moments


def align_by_activations(
    source: nn.Module, target: nn.Module, graph: SpaceGraph, probe: Inputs | torch.Tensor
) -> Alignment:
    """Match units by the Euclidean distance of their pre-activations over the probe (`acts` of OTFusion).

    Exact transport per space, uniform masses: an assignment for equal widths, a soft map for unequal ones.
    """
    spaces = graph.hidden
    plans: dict[str, Plan] = {}
    for space, moment in zip(spaces, cross_moments(source, target, probe, [space.before for space in spaces])):
        plans[space.name] = solve(moment.squared_distances.sqrt(), method="exact")
    return Alignment({space.name: SpaceMap.from_plan(plans[space.name]) for space in spaces}, plans)


def align_by_weights(
    source: nn.Module, target: nn.Module, graph: SpaceGraph, target_graph: SpaceGraph | None = None
) -> Alignment:
    """Match units by the Euclidean distance of their incoming weights, layer by layer from the input (`wts`).

    Each space is compared after the in-maps of the spaces before it were applied to the source. `target_graph` is
    needed only when widths differ.
    """
    target_graph = target_graph or graph
    target_state = target.state_dict()
    maps: dict[str, SpaceMap] = {}
    plans: dict[str, Plan] = {}
    for space in graph.hidden:
        source_state = moved(source, graph, maps)
        incoming = torch.cdist(
            incoming_rows(source_state, space, target_state), incoming_rows(target_state, target_graph[space.name])
        )
        plans[space.name] = solve(incoming, method="exact")
        maps[space.name] = SpaceMap.from_plan(plans[space.name])
    return Alignment(maps, plans)


def incoming_rows(
    state: dict[str, torch.Tensor], space: Space, like: dict[str, torch.Tensor] | None = None
) -> torch.Tensor:
    """Everything that writes each unit of a space, `[size, features]`, float64: weight rows, biases.

    Running statistics are left out: they describe the data, not the unit.
    """
    rows = [
        unit_rows(state[axis.parameter], axis, space.size)
        for axis in space.writers
        if not axis.parameter.endswith(("running_mean", "running_var"))
    ]
    if like is not None:
        for axis in space.writers:
            if state[axis.parameter].dim() != like[axis.parameter].dim():
                raise SpaceMismatch(
                    f"'{axis.parameter}' has shapes {tuple(state[axis.parameter].shape)} and "
                    f"{tuple(like[axis.parameter].shape)}; clients must share one architecture"
                )
    return torch.cat(rows, dim=1)
