"""Which registered method to take where none is named: what the regime speaks for, against `zip`, without labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch

from featalign.align.regime import LARGEST, regime
from featalign.errors import FeatalignError
from featalign.fuse.choose import FEWEST, distance, parted
from featalign.fuse.engine import solve
from featalign.fuse.methods import METHODS, available
from featalign.fuse.needs import TRAINED
from featalign.fuse.problem import FusionProblem
from featalign.spaces.graph import Space

POOLED = "zip"  # needs neither an alignment nor a dictionary
OTHERWISE = (POOLED, "ot-acts", "vanilla")  # where nothing that was recommended is possible


def recommend(
    problem: FusionProblem, prepare: Callable[[FusionProblem, str], FusionProblem], settings: Mapping[str, Any]
) -> tuple[FusionProblem, str, str]:
    """The problem prepared for a registered method that the cohort allows, that method, and why, in a sentence.

    The regime is read off pairs of activations and says what an alignment can do; what is left after the refit, it does
    not say. So its method and `zip`, which aligns nothing, are both tried on a part of the probe, and the one whose
    network is nearer to the ensemble on the rest is taken; of two equally near, the one that needs no dictionary.

    `prepare` gives a problem what a method needs, `settings` are those of `solve`.
    """
    named, why = spoken_for(problem)
    rivals = [named] if named == POOLED or available(problem)[POOLED] is not None else [named, POOLED]
    probe = problem.cohort.probe
    if len(rivals) == 1 or not probe.sized or len(probe) < FEWEST:
        return prepare(problem, named), named, why
    ready: dict[str, FusionProblem] = {}
    found: dict[str, float] = {}
    for name in rivals:
        try:
            ready[name] = prepare(problem, name)
            fewer, held_out = parted(ready[name])
            found[name] = distance(fewer, solve(fewer, name, **settings).module, held_out)
        except FeatalignError:  # too few samples for its dictionaries, inputs that its moments cannot take
            continue
    if not found:
        return prepare(problem, named), named, why
    taken = min(found, key=lambda name: (found[name], not TRAINED.keys().isdisjoint(METHODS[name].needs)))
    if taken != named and named in found:
        why += f"; '{taken}' ends nearer to the ensemble on held-out inputs ({found[taken]:.2g}, it {found[named]:.2g})"
    elif taken != named:
        why += f", which is not possible here; '{taken}' is"
    return ready[taken], taken, why


def spoken_for(problem: FusionProblem) -> tuple[str, str]:
    """A registered method that the cohort allows and the regime speaks for, and why, in one sentence.

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
