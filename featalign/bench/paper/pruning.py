"""Structured pruning, and the dense parent fused into what is left."""

from __future__ import annotations

from collections.abc import Iterator

from featalign.bench.paper.lab import ACTS, REFITTED, WEIGHTS, Lab
from featalign.bench.paper.registry import experiment
from featalign.bench.paper.rows import Row
from featalign.spaces import prune, trace

AFTER = (WEIGHTS, ACTS, *REFITTED)


@experiment(
    "pruning",
    source="Figure 3 and section S8",
    axis="share of units pruned",
    deviations=("the perceptron on MNIST; the paper's Figure 3 prunes VGG11 on CIFAR-10", "equal weights"),
)
def pruning(
    lab: Lab,
    seed: int,
    *,
    shares: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9),
    criteria: tuple[str, ...] = ("l1", "l2", "random"),
    layers: bool = True,
) -> Iterator[Row]:
    """How much does fusing the dense parent into a pruned network give back?"""
    dense = lab.whole(seed)[0]
    graph = trace(dense, lab.data.train_inputs[:2])
    parts: list[tuple[str, str | None]] = [(criterion, None) for criterion in criteria]
    if layers:
        parts += [(criteria[0], space.name) for space in graph.hidden]
    for criterion, space in parts:
        part = f"{criterion}, {'all layers' if space is None else space}"
        yield Row(seed, part, "dense", None, lab.accuracy(dense))
        for share in shares:
            small = prune(dense, graph, share, criterion, None if space is None else [space], seed)
            yield Row(seed, part, "pruned", share, lab.accuracy(small))
            problem = lab.problem([dense, small], seed)
            for way in AFTER:
                yield lab.row(problem, way, seed, part, share)
