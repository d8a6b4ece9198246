"""What a method needs of a problem: each need answers None, or why it is not met, in one clause."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from featalign.fuse.code import code_layers
from featalign.fuse.problem import FusionProblem
from featalign.registry import Registry
from featalign.spaces import affine
from featalign.spaces.graph import Symmetry

Need = Callable[[FusionProblem], str | None]
NEEDS: Registry[Need] = Registry("need")


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


@NEEDS.register("one-linear-code")
def one_linear_code(problem: FusionProblem) -> str | None:
    """One hidden space, written by one linear layer from the inputs and read by linear layers or by its own weight."""
    found = code_layers(problem)
    return found if isinstance(found, str) else None
