"""What the comparison's feature browser and its figures of units are made from."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch

from featalign import measure
from featalign.align.feature import FeatureMatch
from featalign.data.task import labels_of
from featalign.dictionaries.basis import Basis
from featalign.spaces.graph import Space
from featalign.studies.compare.rows import UnitRow
from featalign.studies.compare.trial import Trial
from featalign.studies.features import FeatureCards, browser_content, feature_cards
from featalign.studies.features.frames import latent_frame, match_frames, pair_frame
from featalign.studies.features.reading import read

LOOKED = 4000  # inputs looked through
ROWS = 16_000  # rows of activations that units are measured on


class Features:
    """Collects the cards of every space; `content` is what the page's browser reads."""

    def __init__(self, trial: Trial, tokenizer: Any = None):
        problem = trial.problem
        self.trial, self.tokenizer = trial, tokenizer
        self.pair = (0, problem.reference)
        self.names = [trial.cohort.names[k] for k in self.pair]
        self.cards: dict[tuple[str, str], FeatureCards] = {}
        self.frames: list[tuple[pd.DataFrame, pd.DataFrame]] = []
        self.inputs = (trial.scored or problem.cohort.probe).sample(LOOKED, trial.seed)
        self.task = problem.cohort.task
        seen = [space for space in problem.graph.hidden if space.pre is not None and space.pre.paired]
        if seen:
            sides = {str(side): problem.clients[k] for side, k in enumerate(self.pair)}
            sites = {
                str(side): list(dict.fromkeys(problem.graphs[k][space.name].after for space in seen))
                for side, k in enumerate(self.pair)
            }
            self.reading = read(sides, self.inputs, sites, trial.seed, ROWS)
            self.labels = labels_of(self.task, self.inputs)

    def space(self, space: Space, bases: tuple[Basis, Basis], match: FeatureMatch) -> None:
        """Add the cards of a space and record what its units carry."""
        trial, problem = self.trial, self.trial.problem
        sites = [problem.graphs[k][space.name].after for k in self.pair]
        origins = self.reading.origins[sites[0]]
        labels = self.labels[origins[:, 0]] if self.labels is not None and origins is not None else None
        found = []
        for side, (k, name) in enumerate(zip(self.pair, self.names)):
            acts = self.reading.rows[str(side)][sites[side]]
            parts = (acts, bases[side].encode(acts), bases[side].atoms, labels)
            trial.add("units", *unit_rows(trial.seed, space.name, name, *parts))
            options: dict[str, Any] = {"task": self.task, "tokenizer": self.tokenizer, "seed": trial.seed}
            found.append(feature_cards(bases[side], problem.clients[k], sites[side], self.inputs, **options))
        self.cards |= {(name, space.name): cards for name, cards in zip(self.names, found)}
        if self.names[0] != self.names[1]:
            self.frames.append(match_frames(match, space.name, self.names, found))
        else:
            self.frames.append((pair_frame([]), latent_frame(found[0], space.name, self.names[0])))

    def content(self) -> dict[str, Any]:
        """What the widget reads; empty without spaces."""
        if not self.cards:
            return {}
        pairs, features = (pd.concat(parts, ignore_index=True) for parts in zip(*self.frames))
        return browser_content(self.cards, pairs, features)


def unit_rows(
    seed: int,
    space: str,
    client: str,
    activations: torch.Tensor,
    codes: torch.Tensor,
    atoms: torch.Tensor,
    labels: torch.Tensor | None,
) -> list[UnitRow]:
    """Effective features per unit, and with labels the selectivity of units and latents beside shuffled labels."""
    values = {"effective_features": measure.effective_features_per_unit(codes, atoms)}
    if labels is not None:
        shuffled = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
        for name, what in (("unit", activations), ("latent", codes)):
            values[f"{name}_selectivity"] = measure.class_selectivity(what, labels)
            values[f"{name}_selectivity_null"] = measure.class_selectivity(what, shuffled)
    found = []
    for name, each in values.items():
        finite = np.asarray(each, dtype=float)
        finite = finite[np.isfinite(finite)]
        if len(finite):
            low, median, high = np.quantile(finite, [0.25, 0.5, 0.75]).tolist()
            found.append(UnitRow(seed, space, client, name, float(finite.mean()), low, median, high, len(finite)))
    return found
