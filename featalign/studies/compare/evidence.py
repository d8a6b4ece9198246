"""What explains the table: every space of the first client against the reference, in both bases, with nulls."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from featalign.align import Pair, regime
from featalign.align.feature import FeatureMatch, match_features
from featalign.dictionaries.basis import Basis, NeuronBasis
from featalign.errors import FeatalignError
from featalign.fuse import METHODS, ledger
from featalign.fuse.fates import fates
from featalign.spaces import apply_nonlinearity
from featalign.spaces.graph import Space
from featalign.studies.compare.features import Features
from featalign.studies.compare.rows import FateRow, FeatureRow, LedgerRow, MatchRow, SpaceRow
from featalign.studies.compare.trial import Trial

SAMPLES = 4000  # rows of activations that the regime is measured on
MATRIX = 256  # rows and columns of the correlation matrices that are drawn
_REGIME = ("permutation", "orthogonal", "linear", "features")


def measure_spaces(trial: Trial, tokenizer: Any = None) -> None:
    """Record the evidence of every hidden space; what cannot be measured is noted in its row."""
    problem = trial.problem
    if not problem.graph.hidden:
        trial.notes.append("the networks have no hidden space: there is nothing to align")
        return
    _ledgers(trial)
    _fates(trial)
    features = Features(trial, tokenizer)
    for space in problem.graph.hidden:
        first = problem.graphs[0][space.name]
        row = SpaceRow(trial.seed, space.name, space.size, first.size, str(space.symmetry))
        if space.pre is None:
            row = replace(row, note="it is seen at no module's input or output")
        elif not space.pre.paired:
            row = replace(row, note="it is seen only beside other hidden spaces, where samples do not correspond")
        else:
            try:
                row = _space(trial, space, row, features)
            except FeatalignError as error:
                row = replace(row, note=str(error))
        trial.add("spaces", row)
    trial.browser = features.content()


def _space(trial: Trial, space: Space, row: SpaceRow, features: Features) -> SpaceRow:
    """Matches in both bases, the regime, and what units carry."""
    problem = trial.problem
    found = trial.trained.get("dictionaries", {}).get(space.name, {})
    pair_bases = (found[0], found[problem.reference]) if {0, problem.reference} <= set(found) else None
    bases: dict[str, tuple[Basis, Basis]] = {space.name: pair_bases} if pair_bases else {}
    pair = Pair(replace(problem.pair(0), bases=bases), space.name)
    neuron = match_features(NeuronBasis(pair.source.size), NeuronBasis(pair.target.size), pair.posts())
    _match(trial, space, "neuron", neuron)
    note = ""
    if pair_bases is not None:
        try:
            feature = pair.match
            _match(trial, space, "feature", feature)
            trial.add("features", *_features(trial.seed, space.name, feature))
            features.space(space, pair_bases, feature)
        except FeatalignError as error:
            note = f"features: {error}"
    pre, post, target = _rows(pair)
    known = space.nonlinearity is not None
    apply = partial(apply_nonlinearity, space) if known else torch.Tensor.clone
    own, theirs = pair_bases or (None, None)
    verdict = regime(post, target, own, theirs, space.symmetry, pre=pre, apply=apply)
    shares = {key: getattr(verdict, key) for key in _REGIME}
    defect = verdict.commutation_defect if known else None
    return replace(
        row, regime=verdict.name, recommended=verdict.recommended, explanation=verdict.explanation,
        commutation_defect=defect, note=note, **shares,
    )  # fmt: skip


def _rows(pair: Pair) -> list[torch.Tensor]:
    """Pre- and post-activations of the first client and post-activations of the reference, `SAMPLES` rows of each."""
    a, b = pair.clients.index
    parts: list[tuple[torch.Tensor, ...]] = []
    for _, held, _ in pair.clients.activations:
        parts.append((held[a][pair.source.before], held[a][pair.source.after], held[b][pair.target.after]))
        if sum(len(part[0]) for part in parts) >= SAMPLES:
            break
    return [torch.cat(chunks)[:SAMPLES] for chunks in zip(*parts)]


def _ledgers(trial: Trial) -> None:
    """What the maps of every method keep, for those whose maps carry one network into the other."""
    for name, result in trial.results.items():
        if result.refitted or METHODS[result.method].basis == "pool":
            continue
        for space, kept in ledger(trial.problem, result.alignments).items():
            trial.add("ledger", LedgerRow(trial.seed, space, name, **kept))  # type: ignore[arg-type]


def _fates(trial: Trial) -> None:
    """What became of every client's features in every fused network; without dictionaries of all, nothing."""
    for name, result in trial.results.items():
        for found in fates(trial.problem, result.module, trial.problem.dictionaries):
            row = FateRow(
                trial.seed, found.space, name, trial.cohort.names[found.client], **found.counts(),
                recovered=float(found.recovered.mean()) if len(found.recovered) else float("nan"),
                threshold=found.threshold,
            )  # fmt: skip
            trial.add("fates", row)


def _match(trial: Trial, space: Space, basis: str, match: FeatureMatch) -> None:
    facts = match.to_dict()
    alive, energy = facts["alive"], facts["matched_energy"]
    trial.add(
        "matches",
        MatchRow(
            trial.seed, space.name, basis, facts["pairs"], alive[0], alive[1], facts["mean_correlation"],
            facts["null_mean_best"], 1 - match.threshold, facts["value"], facts["lower_bound"], facts["gap"],
            energy[0], energy[1],
        ),
    )  # fmt: skip
    for key, array in _sorted_match(match).items():
        trial.arrays[f"{space.name}/{basis}/{key}"] = array


def _sorted_match(match: FeatureMatch) -> dict[str, np.ndarray]:
    """Correlations with matched pairs first, best on top, at most `MATRIX` of each; scores and the null's best."""
    order = np.argsort(-match.scores)
    rows, columns = match.pairs[order, 0], match.pairs[order, 1]
    energy_a, energy_b = match.energy
    free_rows = np.setdiff1d(np.flatnonzero(energy_a > 0), rows)
    free_columns = np.setdiff1d(np.flatnonzero(energy_b > 0), columns)
    rows = np.concatenate([rows, free_rows[np.argsort(-energy_a[free_rows])]])[:MATRIX]
    columns = np.concatenate([columns, free_columns[np.argsort(-energy_b[free_columns])]])[:MATRIX]
    return {
        "correlation": match.correlation[np.ix_(rows, columns)].astype(np.float32),
        "matched": np.sort(match.scores)[::-1].astype(np.float32),
        "null": match.null_best.astype(np.float32),
        "best": match.correlation[energy_a > 0].max(axis=1).astype(np.float32),
        "threshold": np.array([1 - match.threshold], dtype=np.float32),
    }


def _features(seed: int, space: str, match: FeatureMatch) -> list[FeatureRow]:
    shared = np.sqrt(match.energy[0][match.pairs[:, 0]] * match.energy[1][match.pairs[:, 1]])
    columns = (match.pairs[:, 0], match.pairs[:, 1], match.scores, match.gains, shared)
    found = [FeatureRow(seed, space, *row) for row in zip(*(column.tolist() for column in columns))]
    return sorted(found, key=lambda row: -row.score * row.energy)
