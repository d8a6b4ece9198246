"""What a method needs of a problem: each need answers None, or why it is not met, in one clause."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from featalign.align.heads import Heads, whole_layers
from featalign.fuse.code import code_layers
from featalign.fuse.problem import FusionProblem
from featalign.registry import Registry
from featalign.spaces import affine
from featalign.spaces.graph import Space, Symmetry

Need = Callable[[FusionProblem], str | None]
NEEDS: Registry[Need] = Registry("need")
TRAINED = {"dictionaries": "topk", "transcoders": "transcoder"}  # needs that are met by training, of what architecture


def unmet(problem: FusionProblem, needs: Sequence[str]) -> str | None:
    """The first need that is not met, or None."""
    return next((reason for need in needs if (reason := NEEDS[need](problem)) is not None), None)


@NEEDS.register("equal-widths")
def equal_widths(problem: FusionProblem) -> str | None:
    """Every hidden space has one size in all clients."""
    for space in problem.graph.hidden:
        for name, graph in zip(problem.cohort.names, problem.graphs):
            if graph[space.name].size != space.size:
                return (
                    f"space '{space.name}' has {graph[space.name].size} units in client {name} and {space.size} in the "
                    "reference, and it wants equal widths"
                )
    return None


@NEEDS.register("base")
def base(problem: FusionProblem) -> str | None:
    """The network that all clients were trained from is known."""
    if problem.cohort.base is None:
        return "it adds up what each client learned since a common start, and none is known (pass base=)"
    return None


@NEEDS.register("affine-maps")
def affine_maps(problem: FusionProblem) -> str | None:
    """Some affine map runs once, of a layer or a bare parameter, so that what it reads is seen."""
    if any(writer.calls == 1 for writer in problem.writers):
        return None
    return "no affine map runs exactly once, so that no Gram matrix of its inputs can be read"


@NEEDS.register("dictionaries")
def dictionaries(problem: FusionProblem) -> str | None:
    """Every hidden space can be read, so that a dictionary can be trained of it."""
    for space in problem.graph.hidden:
        if space.pre is None:
            return f"space '{space.name}' is seen at no module, so no dictionary can be trained of it"
    return None if problem.graph.hidden else "there is no hidden space"


@NEEDS.register("rotations")
def rotations(problem: FusionProblem) -> str | None:
    """Some hidden space is linear or a stream under RMSNorm; elsewhere a rotation is no symmetry."""
    if any(space.symmetry in (Symmetry.ORTHOGONAL, Symmetry.LINEAR) for space in problem.graph.hidden):
        return None
    return "no hidden space is linear, so that no rotation is a symmetry"


@NEEDS.register("transcoders")
def transcoders(problem: FusionProblem) -> str | None:
    """Every hidden space is behind a ReLU, so that transcoder latents can be its units."""
    for space in problem.graph.hidden:
        steps = None if space.nonlinearity is None else tuple(str(step) for step in space.nonlinearity)
        if steps != ("relu",):
            return f"space '{space.name}' is not behind a ReLU, which transcoder latents are"
    return None


@NEEDS.register("chain")
def chain(problem: FusionProblem) -> str | None:
    """Every hidden space is written by one Linear or plain convolution, and nothing else.

    A unit taken from a client is a row of one layer; normalisations and skips tie it to units that are not taken.
    """
    modules = dict(problem.clients[problem.reference].named_modules())
    writers = [layer.writes for layer in problem.graph.layers]
    for layer in problem.graph.layers:
        module, space = modules[layer.module], problem.graph[layer.writes]
        if not isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d)) or not affine.is_affine(module):
            return f"layer '{layer.module}' is a {type(module).__name__}; unit pools want Linear or plain Conv layers"
        if layer.calls != 1:
            return f"layer '{layer.module}' runs {layer.calls} times"
        if not problem.paired_rows(layer):
            return f"rows of layer '{layer.module}' are units of another space, ordered differently by every client"
        if not space.pinned and (space.scales or writers.count(space.name) > 1):
            cause = "a normalisation" if space.scales else "more than one layer"
            return f"space '{space.name}' is also written by {cause}"
    for space in problem.graph.hidden:
        if space.pre is None or space.nonlinearity is None:
            return f"what follows space '{space.name}' is no elementwise nonlinearity"
        if space.name not in writers or all(layer.reads != space.name for layer in problem.graph.layers):
            return f"space '{space.name}' is written or read by something that is no layer"
    return None if problem.graph.hidden else "there is no hidden space"


@NEEDS.register("reducible")
def reducible(problem: FusionProblem) -> str | None:
    """Every hidden space is read by affine maps that are seen at work, which is where what it holds is told.

    What is seen nowhere cannot be picked or projected by activations, only aligned by weights.
    """
    graph = problem.graph
    unlike = _unlike_heads(problem)
    if unlike is not None:
        return unlike
    known = {writer.weight: writer for writer in problem.writers}
    whole = whole_layers(graph)
    inner = {space.name for layer in whole for space in layer.inside}
    heads = {layer.heads.name for layer in whole}
    kept = {axis.parameter for layer in whole if layer.channels for axis in layer.heads.writers}
    for space in graph.hidden:
        if any(other[space.name].symmetry is Symmetry.PINNED for other in problem.graphs):
            return f"space '{space.name}' keeps its basis in some client"
        if space.is_gauge and space.name not in inner | heads:
            return f"heads around '{space.name}' keep their places, as ALiBi's slopes make them, and cannot be picked"
        for axis in space.readers:
            writer = known.get(axis.parameter)
            if writer is None and space.name in inner and axis.parameter in kept:
                continue  # stays within a group, which is picked whole
            if writer is None:
                return f"'{axis.parameter}' reads space '{space.name}', and what it multiplies is seen at no module"
            if not problem.paired(writer):
                return f"rows of '{writer.name}' are units of another space, ordered differently by every client"
        if space.name not in inner and all(writer.reading(space) is None for writer in problem.writers):
            return f"what reads space '{space.name}' is seen at no module"
        shared = _shares_rows(problem, space)
        if shared is not None:
            return f"units of space '{space.name}' lie inside those of '{shared}' and cannot be picked whole"
    for layer in whole:
        reason = _unpicked(layer)
        if reason is not None:
            return reason
    return None if graph.hidden else "there is no hidden space"


def _unlike_heads(problem: FusionProblem) -> str | None:
    """Why heads or groups of one client cannot stand beside those of another: they hold more, or share more keys."""
    for space in problem.graph.spaces:
        labels = {"heads", "qk", "ov"} & set(space.name.split(".")[-2:])
        what = "head" if labels else "group"
        for name, graph in zip(problem.cohort.names, problem.graphs):
            other = graph[space.name]
            for mine, its in zip(space.writers, other.writers):
                inside = labels and not space.name.endswith("heads")
                wide = (other.size, space.size) if inside else (its.repeat, mine.repeat)
                if wide[0] != wide[1]:
                    return (
                        f"'{space.name}' takes {wide[0]} entries of '{mine.parameter}' for each {what} in client "
                        f"{name} and {wide[1]} in the reference, and {what}s are picked as they are"
                    )
    return None


def _unpicked(layer: Heads) -> str | None:
    """Why heads, or groups of query heads or channels, cannot be picked whole from all clients; None where they can."""
    inside = {axis.parameter for axis in layer.heads.writers}
    if layer.channels:
        counts = sorted({axis.repeat for axis in layer.heads.readers})
        if len(counts) != 1:
            return f"groups of '{layer.heads.name}' are read as {' and '.join(map(str, counts))} numbers each"
    for base in layer.inside:
        if any(axis.parameter not in inside for axis in base.writers):
            return (
                f"all heads of '{layer.heads.name}' share one key and value, and which weights hold them was not found"
            )
    return None


def _shares_rows(problem: FusionProblem, space: Space) -> str | None:
    """Another space along the same dimension of a weight, unless it belongs to heads or groups."""
    heads = {each.name for found in whole_layers(problem.graph) for each in (found.heads, *found.inside)}
    if space.name in heads:
        return None
    mine = {(axis.parameter, axis.dim) for axis in space.writers}
    for other in problem.graph.hidden:
        places = {(axis.parameter, axis.dim, axis.repeat * axis.tile > 1) for axis in other.writers}
        if other.name != space.name and any((*place, True) in places for place in mine):
            return other.name
    return None


@NEEDS.register("one-linear-code")
def one_linear_code(problem: FusionProblem) -> str | None:
    """One hidden space, written by one linear layer from the inputs and read by linear layers or by its own weight."""
    found = code_layers(problem)
    return found if isinstance(found, str) else None
