"""One layer under diagnosis: dictionaries of several seeds, controls, and every measure with its null."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from featalign import measure
from featalign.dictionaries import (
    Basis,
    Dictionary,
    DictionaryWarning,
    Quality,
    assess,
    preflight,
    random_dictionary,
    sweep,
    train_many,
)
from featalign.errors import FeatalignError
from featalign.measure import Score
from featalign.measure.driving import driving_kinds, read_columns
from featalign.studies.diagnose import verdicts
from featalign.studies.diagnose.budget import Budget
from featalign.studies.diagnose.config import MEASURED, DiagnoseConfig
from featalign.studies.diagnose.controls import shuffled_samples
from featalign.studies.diagnose.rows import DictionaryRow, FeatureRow, LayerRow, MeasureRow, SweepRow, UnitRow
from featalign.studies.diagnose.verdicts import DRAW, MODEL, RANDOM, RANDOM_WEIGHTS, SAMPLES, WEIGHTS
from featalign.tracking import Log

CLASS_ROWS = 6000
SHUFFLES = 5  # draws of shuffled labels
DRIVEN = 256  # units whose driving inputs are looked at, those that carry the fewest features first
logger = logging.getLogger(__name__)


@dataclass
class Layer:
    """A layer on its way through the diagnosis.

    Attributes:
        name, units: of the space.
        train, held: by network, rows that dictionaries are trained on and rows that everything is measured on.
        labels: `[rows]` of the held rows, where the task has classes.
        seen: what each held row saw of its input, and whether its columns mean something by themselves.
        measured_on: held-out, or training where no rows were held out.
        budget: of its dictionaries; given: a basis to diagnose instead of the first seed's.
        place: what its dictionaries record of where they belong (`spaces.naming.provenance`).
        log: receives the metrics of the model's dictionaries.
        bases: by network; draws: of the second and later draws of shuffled weights; seeds: of the model, one per seed;
            matches: of the first with each other.
        rows: of the frames.
    """

    name: str
    units: int
    train: Mapping[str, torch.Tensor]
    held: Mapping[str, torch.Tensor]
    labels: torch.Tensor | None
    seen: tuple[torch.Tensor | None, bool]
    budget: Budget
    config: DiagnoseConfig
    measured_on: str = "held-out"
    given: Basis | None = None
    place: Mapping[str, Any] = field(default_factory=dict)
    log: Log | None = None
    bases: dict[str, Any] = field(default_factory=dict)
    draws: dict[str, Any] = field(default_factory=dict)
    seeds: list[Any] = field(default_factory=list)
    matches: list[Any] = field(default_factory=list)
    rows: dict[str, list[Any]] = field(default_factory=dict)

    def add(self, frame: str, *rows: Any) -> None:
        """Add rows to a frame."""
        self.rows.setdefault(frame, []).extend(rows)

    def examine(self) -> LayerRow:
        """Train, measure, and say what follows."""
        again, control_again = self._train()
        table = {row.network: row for row in reversed(self.rows["dictionaries"])}
        others = [row for row in self.rows["dictionaries"] if row.network == MODEL][1:]
        table |= {f"{MODEL}, seed {row.seed}": row for row in others}
        acts = self.held[MODEL][:MEASURED]
        codes = self.bases[MODEL].encode(acts)
        rate, ranked = self._firing(acts)
        effective = self._effective(MODEL, acts, codes)
        controls = [self._control(name) for name in (WEIGHTS, *self.draws) if name in self.bases or name in self.draws]
        control = controls[0][0] if controls else None
        varying = int((acts.std(0) > 1e-6).sum())
        verdict, score = verdicts.superposed(again, control_again, varying, table)
        self._measure("directions", score)
        own = effective[ranked & np.isfinite(effective)]
        theirs = [found for _, found in controls]
        training = verdicts.changed(own, theirs, table)
        null = float(np.mean([part.mean() for part in theirs if len(part)])) if any(map(len, theirs)) else float("nan")
        self._measure("effective", measure.mean_score(own, null=null))
        kinds, columns = self._driving(acts, effective, ranked)
        unit_score, latent_score = self._classes(acts, codes)
        self._others(acts, codes)
        self._units(rate, ranked, effective, control, kinds, columns, acts)
        self._features(codes, again)
        if self.config.sweep_steps and self.budget.sweep:
            self.add("sweep", *self._sweep())
        whole = (effective[ranked], kinds[ranked], None if columns is None else columns[ranked])
        words = verdicts.meaning(*whole, table)
        classes = verdicts.about_classes(latent_score, unit_score, training.answer, table)
        budget = self.budget.words(len(self.held[MODEL]))
        return LayerRow(
            self.name, self.units, varying, int(ranked.sum()), verdict.answer, training.answer, verdict.words,
            training.words, words, classes, budget,
        )  # fmt: skip

    def _control(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Features of every unit in a draw of shuffled weights, and those of the ranked ones."""
        acts = self.held[name][:MEASURED]
        found, ranked = self._effective(name, acts), self._firing(acts)[1]
        return found, found[ranked & np.isfinite(found)]

    def _train(self) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Dictionaries of the layer and of its controls; directions that seeds share, here and in the control."""
        config, acts = self.config, self.train[MODEL]
        shape: dict[str, Any] = {"width": self.budget.width, "k": self.budget.k, "steps": self.budget.steps}
        if self.given is not None:
            shape |= {"width": len(self.given.atoms), "k": _k_of(self.given, acts)}
        facts = {"space": self.name, "client": MODEL, **self.place}
        trained, torn = _quiet(
            train_many,
            [acts, shuffled_samples(acts)],
            seeds=config.seeds,
            metadata=[facts, {**facts, "client": SAMPLES}],
            log=self.log,
            **shape,
        )
        self.seeds = list(trained) if self.given is None else [self.given, *trained[1:]]
        for seed, basis in zip(config.seeds, self.seeds):
            self._dictionary(MODEL, seed, basis, self.given is basis)
        shape |= {"width": len(self.seeds[0].atoms)}
        others = {name: rows for name, rows in self.train.items() if name != MODEL and self._alive(name, rows)}
        found = _quiet(train_many, list(others.values()), seeds=config.seeds[:1], **shape) if others else []
        self.bases = {MODEL: self.seeds[0]}
        for name, (basis,) in zip(others, found):
            (self.draws if name.startswith(DRAW) else self.bases)[name] = basis
            self._dictionary(name, config.seeds[0], basis)
        for name, network in ((RANDOM, MODEL), (RANDOM_WEIGHTS, WEIGHTS)):
            if network == MODEL or network in self.bases:
                self.bases[name] = random_dictionary(self.train[network], shape["width"], shape["k"])
                self._dictionary(name, 0, self.bases[name])
        for seed, basis in zip(config.seeds, torn[:2]):
            self._dictionary(SAMPLES, seed, basis)
        if len(self.seeds) < 2:
            return None, None
        self._agreement()
        control = measure.match_scores(torn[0].atoms, torn[1].atoms)
        return (
            verdicts.found_again(self.seeds[0].atoms, self.matches[0]), verdicts.found_again(torn[0].atoms, control)
        )  # fmt: skip

    def _alive(self, name: str, rows: torch.Tensor) -> bool:
        try:
            _quiet(preflight.inspect, rows, {"client": name, "space": self.name})
        except FeatalignError as error:
            logger.warning("no counterpart of the dictionary: %s", error)
            return False
        return True

    def _dictionary(self, network: str, seed: int, basis: Basis, given: bool = False) -> None:
        """Record the quality on held-out rows of the network that a dictionary belongs to."""
        source = {RANDOM: MODEL, RANDOM_WEIGHTS: WEIGHTS, SAMPLES: MODEL}.get(network, network)
        train, held = self.train[source], self.held[source]
        if network == SAMPLES:
            train, held = shuffled_samples(train), shuffled_samples(held)
        quality = quality_of(basis, train, held)
        some = held[:MEASURED]
        gain = measure.shrinkage(some, basis.decode(basis.encode(some)).to(some))
        architecture = getattr(basis, "architecture", basis.name)
        self.add("dictionaries", DictionaryRow(
            self.name, network, seed, architecture, len(basis.atoms), float(getattr(basis, "k", quality.l0)),
            quality.explained_variance, quality.l0, quality.dead_fraction, quality.samples, quality.dead_samples, gain,
            measure.redundancy(basis.atoms), self.measured_on, given,
        ))  # fmt: skip

    def _measure(self, name: str, score: Score) -> None:
        values = (score.value, score.null, *score.interval, score.coverage, score.count, score.evidence)
        self.add("measures", MeasureRow(self.name, name, *values))

    def _agreement(self) -> None:
        """Mean cosine of matched atoms of the first seed's dictionary with the other seeds'."""
        self.matches = scores = [measure.match_scores(self.seeds[0].atoms, other.atoms) for other in self.seeds[1:]]
        matched = [value for found in scores for value in found.similarity]
        self._measure("consistency", measure.mean_score(matched, null=sum(s.null for s in scores) / len(scores)))

    def _firing(self, acts: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Share of samples on which each unit leaves its resting value, and whether that is often enough."""
        rest = acts.median(0).values
        rate = ((acts - rest).abs() > 1e-6 * acts.abs().max().clamp_min(1e-30)).double().mean(0).numpy()
        return rate, rate >= max(self.config.firing_rate, 3 / len(acts))

    def _effective(self, network: str, acts: torch.Tensor, codes: torch.Tensor | None = None) -> np.ndarray:
        basis = self.draws[network] if network in self.draws else self.bases[network]
        found = measure.effective_features_per_unit(basis.encode(acts) if codes is None else codes, basis.atoms)
        found[acts.std(0) < 1e-6] = float("nan")
        return found.numpy()

    def _driving(
        self, acts: torch.Tensor, effective: np.ndarray, ranked: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Kinds of inputs and columns behind the ranked units with the fewest features."""
        kinds = np.full(self.units, np.nan)
        seen, tabular = self.seen
        if seen is None or not ranked.any():
            return kinds, None
        some = min(4000, len(acts))
        order = [unit for unit in np.argsort(effective) if ranked[unit]][:DRIVEN]
        kinds[order] = driving_kinds(acts[:some, order], seen[:some]).numpy()
        if not tabular:
            return kinds, None
        columns = np.full(self.units, np.nan)
        columns[order] = read_columns(acts[:some, order], seen[:some]).numpy()
        return kinds, columns

    def _classes(self, acts: torch.Tensor, codes: torch.Tensor) -> tuple[Score | None, Score | None]:
        """Selectivity of units and latents, and 1-sparse probes, against the largest of some draws of mixed labels."""
        if self.labels is None:
            return None, None
        acts, codes, labels = acts[:CLASS_ROWS], codes[:CLASS_ROWS], self.labels[: len(acts)][:CLASS_ROWS]
        draw = torch.Generator().manual_seed(1)
        mixed = [labels[torch.randperm(len(labels), generator=draw)] for _ in range(SHUFFLES)]
        found = []
        for name, values in (("unit", acts), ("latent", codes)):
            often = (values > 0).double().mean(0) >= max(self.config.firing_rate, 3 / len(values))
            values = values[:, often]
            if not values.shape[1]:
                return None, None
            null = max(float(measure.class_selectivity(values, each).nanmean()) for each in mixed)
            score = measure.mean_score(measure.class_selectivity(values, labels).numpy(), null=null)
            self._measure(f"{name}_selectivity", score)
            self._measure(f"{name}_probing", measure.sparse_probing(values, labels))
            found.append(score)
        return found[0], found[1]

    def _others(self, acts: torch.Tensor, codes: torch.Tensor) -> None:
        null = float("nan")
        if WEIGHTS in self.bases:
            basis = self.bases[WEIGHTS]
            null = measure.effective_features(basis.encode(self.held[WEIGHTS][:MEASURED]), basis.atoms) / self.units
        self._measure("psi", measure.superposition(codes, self.bases[MODEL].atoms, null))
        if self.units <= 1024:  # eight rotations of wider layers take minutes
            self._measure("privileged", measure.privileged_basis(acts))

    def _units(
        self,
        rate: np.ndarray,
        ranked: np.ndarray,
        effective: np.ndarray,
        control: np.ndarray | None,
        kinds: np.ndarray,
        columns: np.ndarray | None,
        acts: torch.Tensor,
    ) -> None:
        random = self._effective(RANDOM, acts)
        select = self._selectivity(acts)
        for u in range(self.units):
            values = [None if part is None else _number(part[u]) for part in (effective, control, random, kinds)]
            more = [None if part is None else _number(part[u]) for part in (columns, select)]
            self.add("units", UnitRow(self.name, u, float(rate[u]), bool(ranked[u]), *values, *more))

    def _features(self, codes: torch.Tensor, again: np.ndarray | None) -> None:
        rate = (codes > 0).double().mean(0).numpy()
        energy = codes.double().pow(2).sum(0)
        share = (energy / energy.sum().clamp_min(1e-300)).numpy()
        cosine = np.full(codes.shape[1], np.nan)
        if self.matches:
            cosine[self.matches[0].pairs[:, 0]] = self.matches[0].similarity
        select = self._selectivity(codes)
        least = max(self.config.firing_rate, 3 / len(codes))
        for j in range(codes.shape[1]):
            more = (_number(cosine[j]), None if select is None else _number(select[j]))
            self.add("features", FeatureRow(
                self.name, j, float(rate[j]), bool(rate[j] >= least), float(share[j]), *more
            ))  # fmt: skip

    def _selectivity(self, values: torch.Tensor) -> np.ndarray | None:
        if self.labels is None:
            return None
        return measure.class_selectivity(values, self.labels[: len(values)]).numpy()

    def _sweep(self) -> list[SweepRow]:
        """Psi, explained variance and L0 over widths and sparsity, with seeds, here and in the control."""
        found = []
        for name, seeds in ((MODEL, self.config.seeds), (WEIGHTS, self.config.seeds[:1])):
            if name not in self.bases:
                continue
            acts = self.train[name][:12_000]
            options: dict[str, Any] = {"widths": [self.units, 2 * self.units], "steps": self.config.sweep_steps}
            options["allow_narrow"] = True  # what the layer's rows suffice for is the budget's to say
            swept = _quiet(sweep, acts, seeds=seeds, **options)
            for row, basis in zip(swept.frame.to_dict(orient="records"), swept.dictionaries):
                psi = measure.effective_features(basis.encode(acts[:4000]), basis.atoms) / self.units
                values = (row["explained_variance"], row["l0"], row["dead_fraction"], psi)
                found.append(SweepRow(self.name, name, int(row["width"]), float(row["k"]), int(row["seed"]), *values))
        return found


def quality_of(basis: Basis, train: torch.Tensor, held: torch.Tensor) -> Quality:
    """Explained variance and L0 on held-out rows, dead latents over all rows, of any basis."""
    every = held if train is held else torch.cat([train, held])
    if isinstance(basis, Dictionary):
        return assess(basis, every, every, torch.arange(len(every) - len(held), len(every)))
    codes = basis.encode(held)
    dead = float((basis.encode(every) == 0).all(0).double().mean())
    variance = measure.explained_variance(held, basis.decode(codes).to(held))
    return Quality(variance, float((codes != 0).double().sum(1).mean()), dead, len(every), len(held))


def _k_of(basis: Basis, acts: torch.Tensor) -> float:
    k = getattr(basis, "k", None)
    return float(k) if k else max(1.0, float((basis.encode(acts[:2000]) != 0).double().sum(1).mean()))


def _number(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None


def _quiet(function: Any, *args: Any, **options: Any) -> Any:
    """Without dictionary warnings: the budget and the table say what they would."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DictionaryWarning)
        return function(*args, **options)
