"""Union-find over tensor axes: the algebra behind tracing.

An axis of a tensor is a *node*. Nodes that must share a basis are united. Reshaping and concatenating refine a node
into a product (row-major) or a sum (concatenation) of smaller nodes; leaves are what becomes a space. Every leaf
carries the symmetry that the operations seen so far still allow.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

from featalign.spaces.graph import Symmetry, meet


class Node:
    """One axis up to union: a leaf with a symmetry, a product or a sum of nodes.

    Attributes:
        size: entries along the axis.
        label: what the axis is called in a space's name ('heads', 'groups', ...), '' for a plain one.
    """

    __slots__ = ("kind", "label", "parent", "parts", "size", "symmetry")

    def __init__(self, size: int, symmetry: Symmetry = Symmetry.LINEAR, label: str = ""):
        self.size = size
        self.symmetry = symmetry
        self.label = label
        self.parent: Node | None = None
        self.kind = "leaf"
        self.parts: tuple[Node, ...] = ()

    @property
    def root(self) -> Node:
        """The representative of this node's class."""
        node = self
        while node.parent is not None:
            node = node.parent
        while self is not node:
            following = self.parent
            assert following is not None
            self.parent, self = node, following
        return node

    @property
    def leaves(self) -> Iterator[Node]:
        """Leaves below this node; a leaf that occurs twice comes twice."""
        root = self.root
        if root.kind == "leaf":
            yield root
        for part in root.parts:
            yield from part.leaves

    @property
    def pinned(self) -> bool:
        """Whether every leaf must keep its basis."""
        return all(leaf.symmetry is Symmetry.PINNED for leaf in self.leaves)

    def constrain(self, symmetry: Symmetry, label: str = "") -> Node:
        """Allow no more than `symmetry` from here on; returns the node."""
        for leaf in self.leaves:
            leaf.symmetry = meet(leaf.symmetry, symmetry)
            leaf.label = leaf.label or label
        return self

    def pin(self) -> Node:
        """Keep the basis of every leaf."""
        return self.constrain(Symmetry.PINNED)

    def factors(self) -> list[Node]:
        """The product that this node is, flattened; one entry for a leaf or a sum."""
        root = self.root
        return [factor for part in root.parts for factor in part.factors()] if root.kind == "product" else [root]

    def terms(self) -> list[Node]:
        """The sum that this node is, flattened; one entry for a leaf or a product."""
        root = self.root
        return [term for part in root.parts for term in part.terms()] if root.kind == "sum" else [root]

    def _refine(self, kind: str, sizes: Sequence[int]) -> list[Node]:
        root = self.root
        root.kind, root.parts = kind, tuple(Node(size, root.symmetry) for size in sizes)
        return list(root.parts)


def product(nodes: Sequence[Node]) -> Node:
    """The axis whose index runs over all of `nodes`, the last one fastest."""
    factors = [factor for node in nodes for factor in node.factors() if factor.size > 1]
    if len(factors) == 1:
        return factors[0]
    node = Node(prod(factor.size for factor in factors))
    if factors:
        node.kind, node.parts = "product", tuple(factors)
    return node


def concatenation(nodes: Sequence[Node]) -> Node:
    """The axis in which `nodes` follow one another."""
    terms = [term for node in nodes for term in node.terms() if term.size > 0]
    if len(terms) == 1:
        return terms[0]
    node = Node(sum(term.size for term in terms))
    node.kind, node.parts = "sum", tuple(terms)
    return node


def regroup(nodes: Sequence[Node], sizes: Sequence[int]) -> list[Node]:
    """Nodes of the given sizes over the same row-major index; factors that do not divide are pinned."""
    pending = [factor for node in nodes for factor in node.factors() if factor.size > 1]
    result = []
    for size in sizes:
        taken: list[Node] = []
        while prod(node.size for node in taken) < size and pending:
            missing = size // prod(node.size for node in taken)
            head = pending.pop(0)
            if head.size > missing and head.root.kind == "leaf" and head.size % missing == 0:
                first, rest = head._refine("product", (missing, head.size // missing))
                pending.insert(0, rest)
                head = first
            taken.append(head)
        if prod(node.size for node in taken) != size:
            for node in nodes:
                node.pin()
            return [Node(size, Symmetry.PINNED) for size in sizes]
        result.append(product(taken) if taken else Node(1, Symmetry.PINNED))
    return result


def divide(node: Node, sizes: Sequence[int]) -> list[Node]:
    """Consecutive pieces of the given sizes; what cannot be cut there is pinned."""
    root = node.root
    if sum(sizes) != root.size or len([size for size in sizes if size]) <= 1:
        return [root if size == root.size else Node(size, Symmetry.PINNED) for size in sizes]
    if root.pinned:
        return [Node(size, Symmetry.PINNED) for size in sizes]
    if root.kind == "leaf":
        pieces = iter(root._refine("sum", [size for size in sizes if size]))
        return [next(pieces) if size else Node(0, Symmetry.PINNED) for size in sizes]
    if root.kind == "product":
        first, *rest = root.factors()
        inner = root.size // first.size
        if all(size % inner == 0 for size in sizes):
            return [product([piece, *rest]) for piece in divide(first, [size // inner for size in sizes])]
        root.pin()
        return [Node(size, Symmetry.PINNED) for size in sizes]
    pending, result = root.terms(), []
    for size in sizes:
        taken: list[Node] = []
        while (missing := size - sum(term.size for term in taken)) > 0:
            head = pending.pop(0)
            if head.size > missing:
                head, remainder = divide(head, (missing, head.size - missing))
                pending.insert(0, remainder)
            taken.append(head)
        result.append(concatenation(taken) if taken else Node(0, Symmetry.PINNED))
    return result


def unite(a: Node, b: Node) -> Node:
    """Make two axes share one basis and return it; where their structures do not fit, both are pinned."""
    a, b = a.root, b.root
    if a is b:
        return a
    if a.size != b.size:
        a.pin(), b.pin()
        return a
    if a.kind != "leaf":
        a, b = b, a
    if a.kind == "leaf":
        b.constrain(a.symmetry, a.label)
        a.parent = b
        return b
    if a.kind == b.kind == "product":
        return _unite_products(a, b)
    if a.kind == "product":
        a, b = b, a
    sizes = [term.size for term in a.terms()]
    for term, piece in zip(a.terms(), divide(b, sizes), strict=True):
        unite(term, piece)
    return a.root


def _unite_products(a: Node, b: Node) -> Node:
    left, right = a.factors(), b.factors()
    while left and right:
        if left[0].size == right[0].size:
            unite(left.pop(0), right.pop(0))
            continue
        longer, size = (left, right[0].size) if left[0].size > right[0].size else (right, left[0].size)
        if longer[0].kind != "leaf" or longer[0].size % size:
            a.pin(), b.pin()
            break
        longer[:1] = longer[0]._refine("product", (size, longer[0].size // size))
    return a.root


@dataclass(frozen=True)
class Place:
    """Where a leaf lies along an axis; the fields are those of `Axis`. `exact` is False where `Axis` cannot say it."""

    leaf: Node
    repeat: int = 1
    tile: int = 1
    offset: int = 0
    exact: bool = True


def places(node: Node, repeat: int = 1, tile: int = 1, offset: int = 0, exact: bool = True) -> Iterator[Place]:
    """Every leaf of an axis with its place in it."""
    root = node.root
    if root.kind == "leaf":
        yield Place(root, repeat, tile, offset, exact)
    elif root.kind == "product":
        factors = root.factors()
        for k, factor in enumerate(factors):
            before = prod(f.size for f in factors[:k])
            after = prod(f.size for f in factors[k + 1 :])
            yield from places(factor, repeat * after, tile * before, offset, exact)
    else:
        start = 0
        for term in root.terms():
            yield from places(term, repeat, tile, offset + start * repeat, exact and tile == 1)
            start += term.size
