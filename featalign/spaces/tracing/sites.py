"""Where a space is seen: sites at module boundaries, and those before and after its last nonlinearity."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import nn

from featalign.spaces.graph import Site, Step, Symmetry
from featalign.spaces.tracing.axes import Node, Place, places
from featalign.spaces.tracing.expressions import Version, between
from featalign.spaces.tracing.registry import Dims
from featalign.spaces.tracing.tracer import Sighting, Tracer

_LINEAR = {"mul", "div", "add", "sub", "neg", "rsub"}
Views = list[tuple[Site, Version]]  # in the order of the forward pass


def sightings_by_leaf(module: nn.Module, tracer: Tracer) -> dict[int, Views]:
    """Sites of every leaf, by its id.

    A module that runs more than once is a site of the spaces that every one of its calls shows at the same place: its
    activations are those of all calls. Tensors that hold NaN or infinity (masked scores) are no sites.
    """
    found: dict[int, Views] = defaultdict(list)
    shown: dict[tuple[str, str], list[set[tuple[int, Site]]]] = defaultdict(list)
    rows: list[tuple[Sighting, list[tuple[int, Site]]]] = []
    for sighting in tracer.sightings:
        if sighting.module:
            seen = list(_seen(module, sighting)) if bool(torch.isfinite(sighting.tensor).all()) else []
            shown[sighting.module, sighting.side].append(set(seen))
            rows.append((sighting, seen))
    for sighting, seen in rows:
        calls = shown[sighting.module, sighting.side]
        common = set.intersection(*calls) if len(calls) == tracer.calls[sighting.module] else set()
        for leaf, site in seen:
            if (leaf, site) in common:
                found[leaf].append((site, sighting.version))
    return found


def _seen(module: nn.Module, sighting: Sighting) -> Iterator[tuple[int, Site]]:
    """Leaves in a tensor with the sites they make."""
    dims = sighting.dims
    for k, dim in enumerate(dims):
        if k == 0 or dim.node is None:
            continue
        for place in places(dim.node):
            if place.exact and place.leaf.symmetry is not Symmetry.PINNED:
                whole = dim.node.root is place.leaf
                yield id(place.leaf), _site(module, sighting, k, place, whole)


def _site(module: nn.Module, sighting: Sighting, dim: int, place: Place, whole: bool) -> Site:
    """A site; its dimension is left out where the module's type says it."""
    paired = _paired(sighting.dims, dim, place.leaf)
    if whole:
        return Site(sighting.module, sighting.side, None if dim == _usual(module, sighting) else dim, paired=paired)
    return Site(
        sighting.module, sighting.side, dim, place.leaf.size, place.repeat, place.tile, place.offset, paired=paired
    )


def _usual(module: nn.Module, sighting: Sighting) -> int:
    """The dimension that holds units by the module's type."""
    rank = len(sighting.dims)
    channels = isinstance(
        module.get_submodule(sighting.module), (nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm)
    )
    return 1 if channels and rank > 2 else rank - 1


def as_one_unit(views: Views, size: int, module: nn.Module, tracer: Tracer) -> Views:
    """The views of `size` units as those of a single one that holds them all."""
    usual = {(seen.module, seen.side): _usual(module, seen) for seen in tracer.sightings if seen.module}
    found = []
    for site, version in views:
        dim = usual[site.module, site.side] if site.dim is None else site.dim
        found.append((replace(site, dim=dim, size=1, repeat=site.repeat * size), version))
    return found


def _paired(dims: Dims, dim: int, leaf: Node) -> bool:
    """Whether everything beside the leaf keeps its basis: the other dimensions and the factors of its own."""
    others = [leaf_of for k, other in enumerate(dims) if k != dim and other.node for leaf_of in other.node.leaves]
    node = dims[dim].node
    assert node is not None
    others += _beside(node, leaf)
    return all(other.symmetry is Symmetry.PINNED for other in others)


def _beside(node: Node, leaf: Node) -> list[Node]:
    """Leaves that share entries with `leaf` along one axis; the other pieces of a concatenation do not."""
    root = node.root
    holding = [part for part in root.parts if leaf in list(part.leaves)]
    if root.kind == "leaf" or not holding:
        return []
    found = _beside(holding[0], leaf)
    if root.kind == "product":
        found += [other for part in root.parts if part is not holding[0] for other in part.leaves]
    return found


def _chain(
    views: Views, last: Version, tracer: Tracer, shown: Callable[..., Site | None]
) -> tuple[Site | None, Site | None, tuple[Step, ...]] | None:
    """The nearest tensor before the last one from which elementwise steps lead there that are not all linear."""
    for _, version in reversed(views):
        if version != last and tracer.entries[version] == tracer.entries[last]:
            pre = shown(version)
            post, steps = shown(last, pre), between(version, last, tracer.made)
            if post is not None and steps and any(str(step) not in _LINEAR for step in steps):
                return pre, post, steps
    return None


def before_and_after(views: Views, tracer: Tracer) -> tuple[Site | None, Site | None, tuple[Step, ...] | None]:
    """Sites before and after the last nonlinearity, and that nonlinearity.

    The second is the last tensor in which the space is seen, the first the input of the nonlinearity before it. Both
    have the same positions: where a pooling follows, the second is the last elementwise result before it, and where no
    module shows that, both are the last tensor. Sites whose samples are paired come first.
    """
    views = [view for view in views if view[0].paired] or views
    if not views:
        return None, None, None
    entries = {version: tracer.entries[version] for _, version in views}
    counts = Counter(site for site, _ in dict.fromkeys(views))

    def shown(version: Version, like: Site | None = None) -> Site | None:
        """The plainest site that shows a tensor, of as many calls as another one."""
        same = [s for s, seen in views if seen == version and (like is None or counts[s] == counts[like])]
        return min(same, key=lambda site: (site.size is not None, site.side != "out"), default=None)

    last = views[-1][1]
    found = [
        (clock, version) for version, (_, clock) in tracer.nonlinear.items() if version in entries and version != last
    ]
    if not found:
        return _chain(views, last, tracer, shown) or (shown(last), shown(last), ())
    before = max(found)[1]
    pre = shown(before)
    if entries[before] == entries[last] and (post := shown(last, pre)) is not None:
        return pre, post, between(before, last, tracer.made)
    for _, version in reversed(views):
        if version != before and entries[version] == entries[before]:
            post, steps = shown(version, pre), between(before, version, tracer.made)
            if post is not None and steps is not None:
                return pre, post, steps
    return shown(last), shown(last), ()
