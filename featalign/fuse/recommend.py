"""Which registered method the regime of a cohort speaks for."""

from __future__ import annotations

from collections import Counter

import torch

from featalign.align.regime import LARGEST, regime
from featalign.errors import FeatalignError
from featalign.fuse.methods import METHODS, available
from featalign.fuse.problem import FusionProblem
from featalign.spaces.graph import Space

OTHERWISE = ("zip", "ot-acts", "vanilla")  # where nothing that was recommended is possible


def recommend(problem: FusionProblem) -> tuple[str, str]:
    """A registered method that the cohort allows, and why, in one sentence.

    Every hidden space of every client speaks for what `align.regime` recommends of its activations and the reference's,
    with the weight of its units; without dictionaries.
    """
    votes: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    for k in range(len(problem.cohort)):
        for space in problem.graph.hidden if k != problem.reference else ():
            if space.pre is None or not space.pre.paired:
                continue
            try:
                found = regime(*_codes(problem, k, space), symmetry=space.symmetry, seed=problem.cohort.seed)
            except FeatalignError:  # too few samples, a silent space
                continue
            votes[found.recommended] += space.size
            kinds[found.name] += 1
    possible = available(problem)
    spoken = [name for name, _ in votes.most_common() if name in METHODS and possible[name] is None]
    chosen = (spoken or [name for name in OTHERWISE if name in possible and possible[name] is None])[0]
    seen = ", ".join(f"{name} in {count}" for name, count in kinds.most_common()) or "no space could be read"
    wanted = "" if not votes or votes.most_common(1)[0][0] == chosen else (
        f"; {votes.most_common(1)[0][0]} is not possible here"
    )  # fmt: skip
    return chosen, f"the regime of the spaces ({seen}) speaks for '{chosen}'{wanted}"


def _codes(problem: FusionProblem, client: int, space: Space) -> tuple[torch.Tensor, torch.Tensor]:
    """Post-activations of a client and of the reference on at most `LARGEST` rows."""
    mine, theirs, rows = [], [], 0
    for _, held, _ in problem.activations:
        mine.append(held[client][problem.graphs[client][space.name].after])
        theirs.append(held[problem.reference][space.after])
        rows += len(theirs[-1])
        if rows >= LARGEST:
            break
    return torch.cat(mine)[:LARGEST], torch.cat(theirs)[:LARGEST]
