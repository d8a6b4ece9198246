"""A small network into one of twice its width."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from featalign.bench.paper.lab import ACTS, REFITTED, Lab, Way
from featalign.bench.paper.registry import experiment
from featalign.bench.paper.rows import Row
from featalign.bench.paper.transfer import curve
from featalign.fuse import mixing_weights

PUBLISHED = Way("OT, activations, published rule", "ot-acts", False, {"maps": "published"})
PUBLISHED_REFITTED = replace(PUBLISHED, row="OT, activations, published rule, refitted", refit=True)
LOUDER = "OT, activations, at the published rule's share"


@experiment(
    "widths",
    source="Figure 4",
    axis="weight of the client",
    deviations=(
        "the corrected maps divide the in-map by the client's masses; the published rule divides both by the server's",
        "a probe of 200 inputs",
        "the published rule multiplies what the client reads by the ratio of the widths, as if its weight w were "
        "r w / (1 - w + r w); one row gives the corrected maps that weight",
    ),
)
def widths(
    lab: Lab, seed: int, *, factor: float = 2.0, label: int = 4, points: int = 11, every: int = 5
) -> Iterator[Row]:
    """What does a client give to a server of twice its width?"""
    clients = lab.split(seed, special=label, factors=(1.0, factor))
    problem = lab.problem([client.model for client in clients], seed)
    part = f"server {factor:g} times as wide"
    yield from curve(lab, problem, seed, part, (ACTS, PUBLISHED, *REFITTED, PUBLISHED_REFITTED), points, every)
    for step in range(points):
        weight = step / (points - 1)
        share = factor * weight / (1 - weight + factor * weight)
        found = lab.row(problem.mixed(mixing_weights(share, 2)), ACTS, seed, part, weight)
        yield replace(found, row=LOUDER)
