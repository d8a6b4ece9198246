"""Attention with one key and value: one unit of heads, though no tensor has an axis of one.

Where queries come in several heads, or groups of heads, each with a key and a value of its own, weights have an axis of
them. Of a single head, and of a single group (multi-query attention: Shazeer 2019, "Fast transformer decoding"),
nothing says that its key and value belong to its queries, so that is found by what they have in common: the basis
inside, or, where rotary positions keep that as it is, the module around them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from featalign.spaces.tracing.axes import Node, Place, places

Entry = tuple[str, int, Node]  # a parameter, a dimension of it, and its axis
Places = list[tuple[str, int, Place]]  # a parameter, a dimension of it, and the place there
Role = Callable[[str, int], str]  # how a dimension of a parameter takes part in its space
INSIDE = ("qk", "ov")  # labels of the bases inside a head


@dataclass(frozen=True)
class Group:
    """One unit: where it lies, and the axis (heads, or the values of a single one) whose entries are all of its own."""

    leaf: Node
    places: Places


def single_groups(axes: Sequence[Entry], role: Role) -> Iterator[Group]:
    """Every attention layer with one key and value, as one unit of all its weights; `axes` of all parameters."""
    dims: dict[str, list[Entry]] = {}
    for entry in axes:
        dims.setdefault(entry[0], []).append(entry)
    yield from _shared(axes, dims, role)
    yield from _alone([entry for entry in axes if not any(_heads(node) for _, _, node in dims[entry[0]])], dims, role)


def _shared(axes: Sequence[Entry], dims: dict[str, list[Entry]], role: Role) -> Iterator[Group]:
    """Several query heads, one key and value."""
    for leaf in {id(leaf): leaf for _, _, node in axes for leaf in _heads(node)}.values():
        queries = [(name, k, place) for name, k, node in axes for place in places(node) if place.leaf is leaf]
        around = {_around(name) for name, _, _ in queries}
        inner = {id(other) for name, _, _ in queries for _, _, node in dims[name] for other in node.leaves}
        shared = [
            (name, k, place)
            for name, k, node in axes
            if role(name, k) == "writer" and not any(_heads(other) for _, where, other in dims[name] if where != k)
            for place in _parts(node)
            if all(id(part) in inner for part in place.leaf.leaves) or (place.leaf.pinned and _around(name) in around)
        ]
        if shared := _whole(shared, dims):
            whole = [(name, k, replace(place, repeat=place.repeat * leaf.size)) for name, k, place in queries]
            yield Group(leaf, [*whole, *shared])


def _alone(axes: Sequence[Entry], dims: dict[str, list[Entry]], role: Role) -> Iterator[Group]:
    """One head: a query, a key and a value in the same module, and what reads the value."""
    layers: dict[str, Places] = {}
    for name, k, node in axes:
        for place in _parts(node):
            layers.setdefault(_around(name), []).append((name, k, place))
    for found in layers.values():
        written = _whole([(name, k, place) for name, k, place in found if role(name, k) == "writer"], dims)
        values = {id(leaf): leaf for leaf in _labelled(written, "ov")}
        read = [
            (name, k, place)
            for name, k, node in axes
            if role(name, k) == "reader"
            for place in _parts(node)
            if any(id(leaf) in values for leaf in place.leaf.leaves)
        ]
        weights = [name for name, _, place in written if len(dims[name]) > 1 and _labelled([(name, 0, place)], "qk")]
        if len(values) == 1 and len(weights) == 2 and len(read) == 1:
            yield Group(next(iter(values.values())), [*written, *read])


def _parts(node: Node) -> Iterator[Place]:
    """What an axis holds of bases inside heads: the axis whole, or, where it packs several, one after another."""
    terms = [node.root] if all(leaf.pinned for leaf in node.leaves) else node.terms()
    for k, term in enumerate(terms):
        if all(leaf.label in INSIDE for leaf in term.leaves):
            yield Place(term, term.size, offset=sum(before.size for before in terms[:k]))


def _whole(shared: Places, dims: dict[str, list[Entry]]) -> Places:
    """Weights of keys and values, with their biases; nothing where one of the two is missing."""
    weights = {_owner(name) for name, _, _ in shared if len(dims[name]) > 1}
    found = [(name, k, place) for name, k, place in shared if _owner(name) in weights]
    return found if all(_labelled(found, label) for label in INSIDE) else []


def _labelled(found: Places, label: str) -> list[Node]:
    return [leaf for _, _, place in found for leaf in place.leaf.leaves if leaf.label == label]


def _heads(node: Node) -> list[Node]:
    return [leaf for leaf in node.leaves if leaf.label == "heads"]


def _owner(name: str) -> str:
    """The module that holds a parameter."""
    return name.rpartition(".")[0]


def _around(name: str) -> str:
    """The module around the one that holds a parameter."""
    return _owner(_owner(name))
