"""A small network into one of twice its width."""

from __future__ import annotations

from collections.abc import Iterator

from featalign.bench.paper.lab import ACTS, REFITTED, Lab, Way
from featalign.bench.paper.registry import experiment
from featalign.bench.paper.rows import Row
from featalign.bench.paper.transfer import curve

PUBLISHED = Way("OT, activations, published rule", "ot-acts", False, {"maps": "published"})


@experiment(
    "widths",
    source="Figure 4",
    axis="weight of the client",
    deviations=(
        "the corrected maps divide the in-map by the client's masses; the published rule divides both by the server's",
        "a probe of 200 inputs",
    ),
)
def widths(
    lab: Lab, seed: int, *, factor: float = 2.0, label: int = 4, points: int = 11, every: int = 5
) -> Iterator[Row]:
    """What does a client give to a server of twice its width?"""
    clients = lab.split(seed, special=label, factors=(1.0, factor))
    problem = lab.problem([client.model for client in clients], seed)
    part = f"server {factor:g} times as wide"
    yield from curve(lab, problem, seed, part, (ACTS, PUBLISHED, *REFITTED), points, every)
