"""One-shot skill transfer: a specialist knows a label that the generalist never saw."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from featalign.bench.paper.lab import REFITTED, RULES, WEIGHTS, Lab, Way
from featalign.bench.paper.registry import experiment
from featalign.bench.paper.rows import Published, Row
from featalign.fuse import FusionProblem, mixing_weights

DIFFERENT, SAME = "different initialisation", "same initialisation"
AXIS = "weight of the specialist"
OWN = "the probe is 200 inputs drawn without labels from the training split; means over seeds, the paper shows one pair"


def curve(
    lab: Lab, problem: FusionProblem, seed: int, part: str, ways: Sequence[Way], points: int, every: int
) -> Iterator[Row]:
    """Every way of fusing along the mixing weight; refitted ones at every so-manieth weight, counted from 0."""
    yield from lab.parents(problem, seed, part)
    for step in range(points):
        weight = step / (points - 1)
        mixed = problem.mixed(mixing_weights(weight, 2))
        for way in ways:
            if step % every == 0 or not way.refit:
                yield lab.row(mixed, way, seed, part, weight)


@experiment(
    "transfer",
    source="Figure 2 and section 5.1",
    axis=AXIS,
    published=(Published(93.11, "best mixing weight, section 5.1", DIFFERENT, "OT, activations"),),
    deviations=(OWN, "the ensemble averages probabilities at equal weights"),
)
def transfer(
    lab: Lab, seed: int, *, label: int = 4, share: float = 0.1, points: int = 11, every: int = 5
) -> Iterator[Row]:
    """What does fusing a specialist into a generalist keep, over mixing weights?"""
    for part, shared in ((DIFFERENT, False), (SAME, True)):
        clients = lab.split(seed, special=label, share=share, shared_init=shared)
        problem = lab.problem([client.model for client in clients], seed)
        yield from curve(lab, problem, seed, part, (*RULES, WEIGHTS, *REFITTED), points, every)


@experiment(
    "splits",
    source="Section S5",
    axis=AXIS,
    deviations=(OWN, "labels and shares are ours; the paper's own choices were not found in the sources at hand"),
)
def splits(
    lab: Lab,
    seed: int,
    *,
    labels: tuple[int, ...] = (0, 7),
    shares: tuple[float, ...] = (0.05, 0.2),
    label: int = 4,
    points: int = 11,
    every: int = 5,
) -> Iterator[Row]:
    """Does skill transfer hold for other labels and other shares of the generalist's data?"""
    chosen = [(other, 0.1) for other in labels] + [(label, share) for share in shares]
    for special, share in chosen:
        clients = lab.split(seed, special=special, share=share)
        problem = lab.problem([client.model for client in clients], seed)
        yield from curve(lab, problem, seed, f"label {special}, share {share:g}", (*RULES, *REFITTED), points, every)
