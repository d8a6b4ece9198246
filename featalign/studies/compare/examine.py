"""What one repetition of a comparison does: choose methods, train what they need, fuse, score, draw the curves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from featalign.clients.cohort import Cohort
from featalign.clients.evaluation import Ensemble
from featalign.data.inputs import Inputs
from featalign.dictionaries.dictionary import Dictionary
from featalign.dictionaries.store import cached_dictionaries
from featalign.errors import FeatalignError, TaskError
from featalign.fuse import METHODS, FusionProblem, FusionResult, available, mixing_weights, solve
from featalign.fuse.methods import require
from featalign.studies.compare.config import CompareConfig
from featalign.studies.compare.evidence import measure_spaces
from featalign.studies.compare.rows import DictionaryRow, FitRow
from featalign.studies.compare.trial import Trained, Trial

Say = Callable[[str], None]
ALONE = "only one network: there is nothing to fuse"


def examine(cohort: Cohort, config: CompareConfig, say: Say, tokenizer: Any = None) -> Trial:
    """Run every method raw and refitted, draw the mixing curves, measure the spaces.

    Raises a `FeatalignError` of one line when a method that was named is not possible; defaults that are not are listed
    with the reason.
    """
    first = 1 / len(cohort) if config.mixing is None else config.mixing
    problem = FusionProblem(cohort, mixing_weights(first, len(cohort)))
    trial = Trial(cohort, problem, scored_inputs(cohort), notes=list(cohort.notes))
    if trial.scored is None:
        trial.notes.append("no evaluation data were given: nothing is scored")
    elif cohort.evaluation is None:
        trial.notes.append("no evaluation data were given: scores are on the probe, which the methods saw")
    chosen = choose(trial, config)
    for need, architecture in (("dictionaries", config.architecture), ("transcoders", "transcoder")):
        wanted = any(need in METHODS[name].needs for name in chosen)
        if len(cohort) > 1 and (wanted or (need == "dictionaries" and config.evidence)):
            train(trial, config, need, architecture, chosen, say)
    weight = trial.problem.mixing[0]
    for name, module in zip(cohort.names, cohort.modules):
        trial.score(f"client-{name}", "", "client", module, weight)
    if len(cohort) > 1:
        for head in (None, *cohort.task.head_targets[1:]):
            members = Ensemble(cohort.modules, problem.mixing, cohort.task, cohort.class_counts, head, problem.temper)
            trial.score("ensemble" if head is None else f"ensemble-{head}", "", "ensemble", members, weight)
    for name in [name for name in chosen if name not in trial.reasons]:
        run_method(trial, config, name, say)
    if config.evidence and len(cohort) > 1:
        say("spaces")
        measure_spaces(trial, tokenizer)
    return trial


def scored_inputs(cohort: Cohort) -> Inputs | None:
    """The evaluation data; the probe where its inputs are their own targets; None where there are no targets."""
    if cohort.evaluation is not None:
        return cohort.evaluation
    try:
        cohort.task.targets(cohort.example)
    except TaskError:
        return None
    return cohort.probe


def choose(trial: Trial, config: CompareConfig) -> list[str]:
    """Names of the methods to run; `trial.reasons` says why the others do not."""
    problem = trial.problem
    for name in config.methods:
        require(problem, name)
    for name, values in config.options.items():
        METHODS[name].bind(values, name)
    chosen = []
    for name, reason in available(problem).items():
        if config.methods:
            why = None if name in config.methods else "not asked for"
        elif len(problem.cohort) == 1:
            why = ALONE
        else:
            why = reason or (None if METHODS[name].default else "not among the defaults; name it in methods")
        if why is None:
            chosen.append(name)
        else:
            trial.reasons[name] = why
    return [name for name in config.methods if name in chosen] if config.methods else chosen


def train(trial: Trial, config: CompareConfig, need: str, architecture: str, chosen: Sequence[str], say: Say) -> None:
    """One dictionary per client and space, cached with the clients.

    What cannot be trained is noted; methods that need it are not run, or raise where they were named.
    """
    cohort = trial.cohort
    found: Trained = {}
    failed: FeatalignError | None = None
    for k, name in enumerate(cohort.names):
        say(f"{need} of client {name}")
        try:
            trained = cached_dictionaries(
                [cohort.modules[k]], [cohort.graphs[k]], [cohort.own[k]], [name], architecture, cohort.seed,
                keys=cohort.keys[k : k + 1] or None, expansion=config.expansion, k=config.k,
            )  # fmt: skip
        except FeatalignError as error:
            failed = error
            trial.notes.append(f"no {need} of client {name}: {error}")
            continue
        for space, (dictionary,) in trained.items():
            found.setdefault(space, {})[k] = dictionary
            trial.add("dictionaries", _dictionary_row(trial.seed, name, space, dictionary))
    trial.trained[need] = found
    if failed is None:
        complete = {space: tuple(members[k] for k in range(len(cohort))) for space, members in found.items()}
        trial.problem = replace(trial.problem, **{need: complete})  # type: ignore[arg-type]
        return
    for name in chosen:
        if need in METHODS[name].needs:
            if name in config.methods:
                raise failed
            trial.reasons[name] = f"it needs {need}, and they cannot be trained: {failed}"


def run_method(trial: Trial, config: CompareConfig, name: str, say: Say) -> None:
    """Fuse raw and refitted, as the method declares, and score both along the mixing weight."""
    method, weight = METHODS[name], trial.problem.mixing[0]
    for refit in method.stages:
        say(f"{name}{'+refit' * refit}")
        stage = "refit" if refit else "fused"
        try:
            fused = _solve(trial.problem, config, name, refit)
            trial.results[fused.name] = fused
            trial.score(fused.name, name, stage, fused.module, weight)
            trial.add("fits", *(FitRow(trial.seed, fused.name, f.layer, *_gain(f)) for f in fused.fits))
            if config.curve and len(trial.cohort) > 1 and trial.scored is not None:
                for point in np.linspace(0, 1, config.curve).round(4).tolist():
                    if abs(point - weight) > 1e-9:
                        mixed = trial.problem.mixed(mixing_weights(point, len(trial.cohort)))
                        moved = _solve(mixed, config, name, refit).module
                        trial.score(fused.name, name, stage, moved, point)
        except FeatalignError as error:
            if name in config.methods:
                raise
            trial.reasons[name] = f"{'refit: ' * refit}{error}"
            return


def _solve(problem: FusionProblem, config: CompareConfig, name: str, refit: bool) -> FusionResult:
    options: Mapping[str, Any] = config.options.get(name, {})
    return solve(
        problem, name, refit=refit, head=config.head or None, ridge=config.ridge, head_ridge=config.head_ridge,
        steps=config.steps if refit else 0, **options,
    )  # fmt: skip


def _gain(fit: Any) -> tuple[float, float]:
    return float(fit.explained_before), float(fit.explained_after)


def _dictionary_row(seed: int, client: str, space: str, dictionary: Dictionary) -> DictionaryRow:
    facts, quality = dictionary.to_dict(), dictionary.quality
    measured = (quality.explained_variance, quality.l0, quality.dead_fraction) if quality else (float("nan"),) * 3
    return DictionaryRow(
        seed, client, space, dictionary.architecture, facts["units"], dictionary.width, float(dictionary.k), *measured,
        *((quality.trained_on, quality.capped_from) if quality else (0, 0)),
    )  # fmt: skip
