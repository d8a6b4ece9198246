"""What is chosen without labels: by how near a network is to the ensemble of all clients on the probe.

Nearness is the task's `distance`: where answers are right or wrong the share of answers that differ, else the head's
loss. On held-out inputs it follows what labels would say, whereas the same distance on the inputs of the refit rewards
heads that have learned them by heart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations, product
from typing import Any

import torch
from torch import nn

from featalign.clients.cohort import Cohort
from featalign.clients.evaluation import answered
from featalign.data.inputs import Inputs
from featalign.data.task import Task, answers
from featalign.errors import BadOption
from featalign.fuse.problem import FusionProblem

AUTO = "auto"
HELD_OUT = 0.25  # share of the probe on which candidates are judged
FEWEST = 8  # inputs of a probe that can be parted
AGREE = 0.9  # share of equal answers from which clients count as knowing the same
Options = dict[str, Any]


def distance(problem: FusionProblem, module: nn.Module, inputs: Inputs) -> float:
    """Mean distance of a network's outputs from what the ensemble says on the same inputs."""
    return _distances(problem.cohort, problem.mixing, [module], inputs)[0]


def distances(problem: FusionProblem, fused: nn.Module) -> dict[str, float]:
    """By client and `fused`: mean distance from the ensemble on the probe. A fused network further away than a client
    is hardly worth having, and that is known without labels.
    """
    cohort = problem.cohort
    found = _distances(cohort, problem.mixing, [*cohort.modules, fused], cohort.probe)
    return dict(zip((*cohort.names, "fused"), found))


def nearest_client(cohort: Cohort, mixing: Sequence[float] = ()) -> int:
    """The client nearest to the ensemble on the probe: the reference that needs the least to be moved."""
    found = _distances(cohort, mixing or (1 / len(cohort),) * len(cohort), cohort.modules, cohort.probe)
    return min(range(len(found)), key=found.__getitem__)


def agreement(problem: FusionProblem) -> float:
    """Mean share of the probe on which two clients give the same answer."""
    cohort = problem.cohort

    def make() -> float:
        apart, elements = 0.0, 0
        for batch in cohort.probe:
            told = [answered(module, batch) for module in cohort.modules]
            for one, other in combinations(told, 2):
                found = cohort.task.distance(one, other)
                apart, elements = apart + float(found.double().sum()), elements + found.numel()
        return 1 - apart / max(elements, 1)

    return problem.memory.get("agreement", (*cohort.modules, cohort.probe), make)


def head_of(problem: FusionProblem, again: bool = False) -> str:
    """The readout target for what the clients know, by how far they agree on the probe.

    Clients that give the same answers know the same, and their mean logits are the better target. Where they differ, a
    client that never saw a class would veto it: the evidence lets those speak who know inputs of that kind. `again`
    says that clients go on from the fused network, round after round: evidence would make it surer every time, until it
    knows one answer only, so that the task's first target, which is bounded, is taken in its place.
    """
    task = problem.cohort.task
    if answers(task) and "mean-logits" in task.heads and agreement(problem) >= AGREE:
        return "mean-logits"
    return task.heads[0] if again else _apart(task)


def _apart(task: Task) -> str:
    """The readout target for clients that know different things."""
    return "evidence" if answers(task) and "evidence" in task.heads else task.heads[0]


def _distances(cohort: Cohort, mixing: Sequence[float], modules: Sequence[nn.Module], inputs: Inputs) -> list[float]:
    task, totals, elements = cohort.task, [0.0] * len(modules), 0
    temper = cohort.temper(mixing)
    known = {id(module): k for k, module in enumerate(cohort.modules)}
    for batch in inputs:
        told = [answered(module, batch) for module in cohort.modules]
        wanted = task.head_target(told, mixing, cohort.class_counts, _apart(task), temper)
        elements += task.distance(told[0], wanted).numel()
        for place, module in enumerate(modules):
            out = told[known[id(module)]] if id(module) in known else answered(module, batch)
            totals[place] += float(task.distance(out, wanted).double().sum())
    return [total / max(elements, 1) for total in totals]


def parted(problem: FusionProblem) -> tuple[FusionProblem, Inputs]:
    """The problem without a part of its probe, and that part.

    A probe that was extended by synthetic inputs stays whole: its real inputs are the part. Raises `BadOption` for a
    probe too small to be parted.
    """
    cohort = problem.cohort
    if cohort.refit_inputs is not cohort.probe:
        return problem, cohort.probe
    count = len(cohort.probe)
    if count < FEWEST:
        raise BadOption(f"a probe of {count} inputs cannot be parted to choose an option; give {FEWEST} or a number")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(cohort.seed))
    cut = max(1, round(HELD_OUT * count))
    rest = cohort.probe.subset(order[cut:])
    changed = cohort.changed(probe=rest, refit_inputs=rest)
    fewer = FusionProblem(changed, problem.mixing, problem.reference, problem.dictionaries, problem.transcoders)
    return fewer, cohort.probe.subset(order[:cut])


def choose_options(
    problem: FusionProblem,
    options: Mapping[str, Any],
    grid: Mapping[str, Iterable[Any]],
    make: Callable[[FusionProblem, Options], nn.Module],
) -> tuple[Options, list[dict[str, Any]]]:
    """Options with every "auto" replaced by the candidate whose network is nearest to the ensemble, and all candidates.

    Args:
        grid: candidates by option.
        make: the fused network of a problem and options.
    """
    wanted = [name for name, value in options.items() if name in grid and value == AUTO]
    if not wanted:
        return dict(options), []
    fewer, held_out = parted(problem)
    tried = []
    for values in product(*(grid[name] for name in wanted)):
        candidate = dict(zip(wanted, values))
        module = make(fewer, {**options, **candidate})
        tried.append({**candidate, "distance": distance(fewer, module, held_out)})
    best = min(tried, key=lambda row: row["distance"])
    return {**options, **{name: best[name] for name in wanted}}, tried
