"""More than two networks."""

from __future__ import annotations

from collections.abc import Iterator

from featalign.bench.paper.lab import REFITTED, RULES, Lab
from featalign.bench.paper.registry import experiment
from featalign.bench.paper.rows import Row

SCHEMES = {"special-label": "one specialist, the rest dealt evenly", "iid": "equal random parts"}


@experiment(
    "many",
    source="Section 4, more than two models",
    axis="networks",
    deviations=(
        "every network is aligned to the last one; the paper aligns to a running estimate that starts at one parent",
        "splits of one data set; the paper's tables of several models are CIFAR-10 networks on all data (see finetune)",
    ),
)
def many(lab: Lab, seed: int, *, counts: tuple[int, ...] = (2, 4, 8)) -> Iterator[Row]:
    """What is kept when more networks are fused into one?"""
    for scheme, part in SCHEMES.items():
        for count in counts:
            clients = lab.split(seed, scheme, count)
            problem = lab.problem([client.model for client in clients], seed)
            scores = [lab.accuracy(module) for module in problem.clients]
            yield Row(seed, part, "best parent", count, max(scores))
            yield Row(seed, part, "mean parent", count, sum(scores) / len(scores))
            yield from (row for row in lab.parents(problem, seed, part, count) if row.row == "ensemble")
            for way in (*RULES, *REFITTED):
                yield lab.row(problem, way, seed, part, count)
