"""What the match depends on: the size of the probe, and how exactly transport is solved."""

from __future__ import annotations

from collections.abc import Iterator

from featalign.bench.paper.lab import ACTS, REFITTED, Lab, Way
from featalign.bench.paper.registry import experiment
from featalign.bench.paper.rows import Row

PAIRS = ("special label", "same data")


def pair(lab: Lab, kind: str, seed: int) -> list:
    """A specialist and a generalist, or two initialisations on all data."""
    if kind == PAIRS[0]:
        return [client.model for client in lab.split(seed)]
    return lab.whole(seed, 2)


@experiment(
    "probe",
    source="Section S2",
    axis="inputs in the probe",
    deviations=("a new probe for every seed and size; equal weights",),
)
def probe(lab: Lab, seed: int, *, sizes: tuple[int, ...] = (10, 25, 50, 100, 200, 400, 1000)) -> Iterator[Row]:
    """How many unlabelled inputs does matching by activations need?"""
    for part in PAIRS:
        modules = pair(lab, part, seed)
        yield from lab.parents(lab.problem(modules, seed), seed, part)
        for size in sizes:
            problem = lab.problem(modules, seed, min(size, len(lab.data.train_labels)))
            for way in (ACTS, *REFITTED):
                yield lab.row(problem, way, seed, part, size)


@experiment(
    "sinkhorn",
    source="Section S4",
    axis="eps, relative to the range of the cost",
    deviations=("eps is relative to the cost's range, the paper's is absolute; plans are rounded to exact marginals",),
)
def sinkhorn(lab: Lab, seed: int, *, eps: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3, 1.0)) -> Iterator[Row]:
    """Is exact transport better than entropic transport?"""
    for part in PAIRS:
        problem = lab.problem(pair(lab, part, seed), seed)
        yield from lab.parents(problem, seed, part)
        yield lab.row(problem, Way("exact", "ot-acts"), seed, part)
        for value in eps:
            yield lab.row(problem, Way("Sinkhorn", "sinkhorn", options={"eps": value}), seed, part, value)
