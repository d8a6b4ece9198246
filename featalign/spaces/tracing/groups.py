"""Query heads that all share one key and value: a group of heads, though no tensor has an axis of one group.

Where queries come in several groups, each with a key and a value of its own, weights have an axis of groups, and keys
and values follow it. Of a single group (multi-query attention: Shazeer 2019, "Fast transformer decoding") nothing
says that its key and value belong to its heads, so it is found by what they have in common: the basis inside, or, where
rotary positions keep that as it is, the module around them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from featalign.spaces.tracing.axes import Node, Place, places

Entry = tuple[str, int, Node]  # a parameter, a dimension of it, and its axis
INSIDE = ("qk", "ov")  # labels of the bases inside a head
Group = list[tuple[str, int, Place]]  # where the one unit lies: a parameter, a dimension of it, and the place there


def single_groups(axes: Sequence[Entry], role: Callable[[str, int], str]) -> Iterator[Group]:
    """Every attention layer whose query heads share one key and value, as one unit of all its weights.

    `axes` are those of all parameters, `role` says how a dimension takes part in its space.
    """
    dims: dict[str, list[Entry]] = {}
    for entry in axes:
        dims.setdefault(entry[0], []).append(entry)
    for leaf in {id(leaf): leaf for _, _, node in axes for leaf in _heads(node)}.values():
        queries = [(name, k, place) for name, k, node in axes for place in places(node) if place.leaf is leaf]
        around = {_owner(_owner(name)) for name, _, _ in queries}
        inner = {id(other) for name, _, _ in queries for _, _, node in dims[name] for other in node.leaves}
        alone = [
            (name, k, place)
            for name, k, node in axes
            if role(name, k) == "writer" and not any(_heads(other) for _, where, other in dims[name] if where != k)
            for place in _parts(node)
            if all(part.label in INSIDE for part in place.leaf.leaves)
            if all(id(part) in inner for part in place.leaf.leaves)
            or (place.leaf.pinned and _owner(_owner(name)) in around)
        ]
        weights = {_owner(name) for name, _, _ in alone if len(dims[name]) > 1}
        shared = [(name, k, place) for name, k, place in alone if _owner(name) in weights]
        if {part.label for _, _, place in shared for part in place.leaf.leaves} == set(INSIDE):
            yield [*((name, k, replace(place, repeat=place.repeat * leaf.size)) for name, k, place in queries), *shared]


def _parts(node: Node) -> Iterator[Place]:
    """An axis whole, or where it packs queries, keys and values, one after another; each as one unit."""
    terms = node.terms() if _heads(node) else [node.root]
    for k, term in enumerate(terms):
        yield Place(term, term.size, offset=sum(before.size for before in terms[:k]))


def _heads(node: Node) -> list[Node]:
    return [leaf for leaf in node.leaves if leaf.label == "heads"]


def _owner(name: str) -> str:
    """The module that holds a parameter, and of a module, the one around it."""
    return name.rpartition(".")[0]
