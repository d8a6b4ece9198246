"""Turn a recorded forward pass into a `SpaceGraph`: leaves become spaces, with names, roles, symmetries and sites."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from torch import nn

from featalign.spaces.graph import Axis, Layer, Space, SpaceGraph, Symmetry
from featalign.spaces.tracing.axes import Node, Place, places
from featalign.spaces.tracing.groups import Group, single_groups
from featalign.spaces.tracing.registry import Origin
from featalign.spaces.tracing.running import run
from featalign.spaces.tracing.sites import Views, as_one_unit, before_and_after, sightings_by_leaf
from featalign.spaces.tracing.tracer import Tracer

log = logging.getLogger(__name__)


def trace(module: nn.Module, example: Any, partial: bool = False) -> SpaceGraph:
    """Find the spaces of any module by running it once on an example.

    Args:
        example: a tensor `[samples, ...]`, a tuple of positional or a mapping of keyword arguments.
        partial: accept control flow that depends on the data and trace the branch the example takes.

    What is not understood keeps its basis and is named in `warnings`. Raises `TraceError` when the module fails on the
    example, reads its own data, draws random numbers, or returns no tensor.
    """
    tracer = run(module, example, partial)
    graph = Assembly(module, tracer).graph()
    for warning in graph.warnings:
        log.warning(warning)
    return graph


class Draft:
    """A space while its axes are gathered."""

    def __init__(self, name: str, size: int, symmetry: Symmetry):
        self.name, self.size, self.symmetry = name, size, symmetry
        self.axes: dict[str, list[Axis]] = {"writer": [], "reader": [], "scale": []}


class Assembly:
    """Gathers the parameter axes and sightings of every leaf."""

    def __init__(self, module: nn.Module, tracer: Tracer):
        self.module, self.tracer = module, tracer
        self.drafts: dict[tuple[int, ...], Draft] = {}
        self.taken: set[str] = set()
        self.of_axis: dict[Origin, list[Draft]] = {}
        self.aliases: dict[int, list[str]] = {}
        for name, tensor in module.state_dict(keep_vars=True).items():
            self.aliases.setdefault(id(tensor), []).append(name)

    def graph(self) -> SpaceGraph:
        """The finished graph."""
        axes = [
            (name, k, dim.node)
            for name in self.tracer.used
            for k, dim in enumerate(self.tracer.parameters[name].dims)
            if dim.node is not None and dim.node.root.label != "kernel"
        ]
        seen = self.tracer.seen_leaves()
        for name, k, node in axes:
            self.restrict(name, k, node, seen)
        for pinned in (False, True):  # what moves has the first choice of names, what writes a space gives it
            for writers in (True, False):
                for name, k, node in axes:
                    if (self.role(name, k) == "writer") == writers and node.pinned == pinned:
                        self.draft(name, k, node)
        for name, k, node in axes:
            self.place(name, k, node)
        views = sightings_by_leaf(self.module, self.tracer)
        for group in single_groups(axes, self.role):
            key = self.gather(group)
            views[key] = as_one_unit(views.get(id(group.leaf), []), group.leaf.size, self.module, self.tracer)
        order = {name: index for index, name in enumerate(self.tracer.used)}
        layers = tuple(self.layers())
        drafts = sorted(self.drafts.values(), key=lambda draft: self.rank(draft, order))
        leaf_of = {id(draft): key[0] for key, draft in self.drafts.items() if len(key) == 1}
        spaces = tuple(self.finish(draft, views.get(leaf_of.get(id(draft), 0), [])) for draft in drafts)
        return SpaceGraph(spaces, layers, tuple(self.tracer.warnings))

    def role(self, name: str, k: int) -> str:
        """How a parameter dimension takes part in its space."""
        roles = self.tracer.roles.get((name, k), set())
        if roles == {"scale"}:
            return "scale"
        return "reader" if roles and "writer" not in roles and "scale" not in roles else "writer"

    def restrict(self, name: str, k: int, node: Node, seen: set[int]) -> None:
        """What is read and written (ties) is only rotated; what no `Axis` can say, or the example never reached (rows
        of a position table past its length), is pinned.
        """
        roles = self.tracer.roles.get((name, k), set())
        if "reader" in roles and len(roles) > 1:
            node.constrain(Symmetry.ORTHOGONAL)
        for place in places(node):
            if not place.exact or id(place.leaf) not in seen:
                place.leaf.pin()

    def draft(self, name: str, k: int, node: Node) -> None:
        """Open the spaces along one parameter dimension; one pinned space where all of it is pinned."""
        if node.pinned:
            leaves = list(node.leaves)
            key = tuple(id(leaf) for leaf in leaves)
            if key not in self.drafts:
                label = next((leaf.label for leaf in leaves if leaf.label in ("input", "rows")), "")
                self.drafts[key] = Draft(self.name(name, label), node.root.size, Symmetry.PINNED)
            return
        for place in places(node):
            leaf = place.leaf
            if (id(leaf),) not in self.drafts and leaf.symmetry is not Symmetry.PINNED:
                self.drafts[(id(leaf),)] = Draft(self.name(name, leaf.label), leaf.size, leaf.symmetry)

    def name(self, parameter: str, label: str) -> str:
        """Module that writes the space, with the label of a factor; unique."""
        module = parameter.rpartition(".")[0] or parameter
        choices = ["input"] if label == "input" else [f"{module}.{label}" if label else module, f"{parameter}.{label}"]
        choices += [f"{choices[0]}.{count}" for count in range(1, len(self.taken) + 2)]
        chosen = next(choice.rstrip(".") for choice in choices if choice.rstrip(".") not in self.taken)
        self.taken.add(chosen)
        return chosen

    def place(self, name: str, k: int, node: Node) -> None:
        """File the axes of one parameter dimension."""
        role = self.role(name, k)
        found = self.of_axis.setdefault((name, k), [])
        key = tuple(id(leaf) for leaf in node.leaves)
        spots = [(self.drafts[key], Place(node.root))] if key in self.drafts and node.pinned else []
        spots += [
            (self.drafts[(id(place.leaf),)], place)
            for place in places(node)
            if not node.pinned and (id(place.leaf),) in self.drafts
        ]
        for draft, place in spots:
            found.append(draft)
            self.file(draft, role, name, k, place)

    def file(self, draft: Draft, role: str, name: str, k: int, place: Place) -> None:
        """One axis of a space, under every name the tensor goes by."""
        for alias in self.aliases[id(self.tracer.parameters[name].tensor)]:
            draft.axes[role].append(Axis(alias, k, place.repeat, place.tile, place.offset))

    def gather(self, group: Group) -> int:
        """Open a space of one unit, all of an attention layer with one key and value; returns the draft's key."""
        draft, key = Draft(self.name(group.places[0][0], "heads"), 1, Symmetry.PERMUTATION), -1 - len(self.drafts)
        self.drafts[key,] = draft
        for name, k, place in group.places:
            self.file(draft, self.role(name, k), name, k, place)
        return key

    def rank(self, draft: Draft, order: dict[str, int]) -> tuple[int, int]:
        """Topological position: the input, then spaces by the first parameter that writes them."""
        first = draft.axes["writer"] or draft.axes["scale"]
        positions = [order.get(axis.parameter, len(order)) for axis in first]
        return (1, min(positions)) if positions else (0, 0)

    def layers(self) -> Iterator[Layer]:
        """Modules whose weight reads one space and writes another, in order of use."""
        for name in self.tracer.used:
            module, _, parameter = name.rpartition(".")
            if parameter != "weight" or len(self.tracer.parameters[name].dims) < 2:
                continue
            ends = {role: [d for k in (0, 1) if self.role(name, k) == role for d in self.of_axis.get((name, k), [])]
                    for role in ("reader", "writer")}  # fmt: skip
            if ends["reader"] and not ends["writer"]:
                ends["writer"] = self.single(name)
            if ends["reader"] and ends["writer"]:
                widest = {role: max(drafts, key=lambda draft: draft.size) for role, drafts in ends.items()}
                yield Layer(module, widest["reader"].name, widest["writer"].name, self.tracer.calls.get(module, 0))

    def single(self, name: str) -> list[Draft]:
        """The pinned space of a layer with one output (a logit, a regressor), which has no axis of its own."""
        dims = self.tracer.parameters[name].dims
        sides = [k for k in (0, 1) if dims[k].size == 1 and self.role(name, k) == "writer"]
        if len(sides) != 1:
            return []
        draft = Draft(self.name(name, ""), 1, Symmetry.PINNED)
        draft.axes["writer"].append(Axis(name, sides[0]))
        self.drafts[(-1 - len(self.drafts),)] = draft
        return [draft]

    def finish(self, draft: Draft, views: Views) -> Space:
        """The space, with its places before and after the last nonlinearity."""
        pre, post, steps = before_and_after(views, self.tracer)
        axes = {role: tuple(found) for role, found in draft.axes.items()}
        return Space(
            draft.name,
            draft.size,
            axes["writer"],
            axes["reader"],
            draft.symmetry,
            pre,
            post,
            axes["scale"],
            tuple(dict.fromkeys(site for site, _ in views)),
            steps,
        )
