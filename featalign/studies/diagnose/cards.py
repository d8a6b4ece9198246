"""The browser of a diagnosis: units, the features they carry, and their counterparts of other seeds and networks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from featalign import measure
from featalign.clients.cohort import Cohort
from featalign.data.inputs import Inputs
from featalign.spaces.graph import Space
from featalign.studies.diagnose.layer import Layer
from featalign.studies.diagnose.verdicts import MODEL, RANDOM, RANDOM_WEIGHTS, SAMPLES, WEIGHTS
from featalign.studies.features import FeatureCards, browser_content, feature_cards
from featalign.studies.features.frames import PairRow, latent_frame, pair_frame, pair_kinds
from featalign.studies.features.reading import Reading

LOOKED = 4000  # inputs that cards look through
CARRIED, SHARE = 8, 0.05  # features that a unit is linked to: so many, of at least this share of its variance
AGAIN, PARTNER = 0.8, 0.3  # cosine of a feature found again by a seed; correlation of a partner in another network
TIE = 0.01  # correlations closer than this are a tie
UNITS, FEATURES = "units", "features"
TERMS = {
    "carries": {"score": "share of the unit's variance that the feature explains"},
    "seed": {"score": "cosine with the feature of the other seed"},
    "partner": {"score": "correlation of the activations", "rival": "next best partner (a tie within .01)"},
}


@dataclass(frozen=True)
class UnitBasis:
    """Units by how far they are above their median, `rest [n]`."""

    rest: torch.Tensor
    name: str = "units"

    @property
    def atoms(self) -> torch.Tensor:
        return torch.eye(len(self.rest))

    def encode(self, activations: torch.Tensor) -> torch.Tensor:
        return activations - self.rest.to(activations)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        return codes + self.rest.to(codes)


class Cards:
    """Collects the cards of every layer; `content` is what the page's widget reads."""

    def __init__(self, cohort: Cohort, inputs: Inputs, seen: Reading, tokenizer: Any = None):
        self.cohort, self.seen, self.tokenizer = cohort, seen, tokenizer
        self.inputs = inputs.sample(LOOKED)
        self.cards: dict[tuple[str, str], FeatureCards] = {}
        self.pairs: list[PairRow] = []
        self.features: list[pd.DataFrame] = []
        self.terms: dict[tuple[str, str], dict[str, str]] = {(UNITS, FEATURES): TERMS["carries"]}

    def add(self, space: Space, layer: Layer) -> None:
        """Add the cards of a layer."""
        basis, rows = layer.bases[MODEL], layer.held[MODEL]
        rest = rows.median(0).values
        units = self._card(UNITS, space, UnitBasis(rest), MODEL)
        features = self._card(FEATURES, space, basis, MODEL, effects=True)
        found = {UNITS: self._carried(space, layer)}
        for seed, other, match in zip(layer.config.seeds[1:], layer.seeds[1:], layer.matches):
            name = f"seed {seed}"
            self._card(name, space, other, MODEL)
            found[name] = self._again(space, name, match)
            self.terms[(FEATURES, name)] = TERMS["seed"]
        skip = {MODEL, WEIGHTS, RANDOM, RANDOM_WEIGHTS, SAMPLES}
        for name in [name for name in layer.bases if name not in skip]:
            self._card(name, space, layer.bases[name], name)
            found[name] = self._partners(space, name, layer)
            self.terms[(FEATURES, name)] = TERMS["partner"]
        self.pairs += [row for rows in found.values() for row in rows]
        self._frames(space, layer, units, features, found)

    def _card(self, name: str, space: Space, basis: Any, network: str, effects: bool = False) -> FeatureCards:
        module = self.cohort.modules[0 if network == MODEL else self.cohort.names.index(network)]
        cards = feature_cards(
            basis, module, space.after, self.inputs, task=self.cohort.task, tokenizer=self.tokenizer, effects=effects
        )
        self.cards[(name, space.name)] = cards
        return cards

    def _carried(self, space: Space, layer: Layer) -> list[PairRow]:
        """Units with the features that make up their variance."""
        basis, rows = layer.bases[MODEL], layer.held[MODEL]
        share = basis.encode(rows).double().pow(2).mean(0)[:, None] * basis.atoms.double().pow(2)
        share = share / share.sum(0).clamp_min(1e-300)  # [F, n]
        best = share.topk(min(CARRIED, len(share)), dim=0)
        links = [
            (u, j, v)
            for u, (which, values) in enumerate(zip(best.indices.T.tolist(), best.values.T.tolist()))
            for j, v in zip(which, values)
            if v >= SHARE
        ]
        kinds = pair_kinds([u for u, _, _ in links], [j for _, j, _ in links])
        return [PairRow(space.name, UNITS, FEATURES, u, j, v, kind=k) for (u, j, v), k in zip(links, kinds)]

    def _again(self, space: Space, name: str, match: Any) -> list[PairRow]:
        """Features that a dictionary of another seed found as well."""
        links = zip(match.pairs.tolist(), match.similarity.tolist())
        return [PairRow(space.name, FEATURES, name, i, j, v, null=match.null) for (i, j), v in links if v >= AGAIN]

    def _partners(self, space: Space, name: str, layer: Layer) -> list[PairRow]:
        """For each feature its best correlated one of another network."""
        rows = [self.seen.rows[network][space.after] for network in (MODEL, name)]
        codes = [basis.encode(part) for basis, part in zip((layer.bases[MODEL], layer.bases[name]), rows)]
        best = measure.correlation(*codes).topk(min(2, codes[1].shape[1]), dim=1)
        values, which = best.values.tolist(), best.indices.tolist()
        links = [(i, which[i][0], values[i]) for i in range(len(which)) if values[i][0] >= PARTNER]
        kinds = pair_kinds([i for i, _, _ in links], [j for _, j, _ in links])
        return [
            PairRow(space.name, FEATURES, name, i, j, v[0], rival=v[1] if len(v) > 1 else None, kind=k)
            for (i, j, v), k in zip(links, kinds)
        ]

    def _frames(
        self, space: Space, layer: Layer, units: FeatureCards, features: FeatureCards, found: dict[str, list[PairRow]]
    ) -> None:
        notes = {row.unit: _unit_words(row) for row in layer.rows["units"]}
        words = {row.latent: _feature_words(row) for row in layer.rows["features"]}
        score = np.array([np.nan if row.effective is None else row.effective for row in layer.rows["units"]])
        self.features.append(latent_frame(units, space.name, UNITS, score=score, notes=notes))
        self.features.append(latent_frame(features, space.name, FEATURES, notes=words))
        for name in list(found)[1:]:
            self.features.append(latent_frame(self.cards[(name, space.name)], space.name, name))

    def content(self) -> dict[str, Any]:
        """What the widget reads."""
        nouns = {name: "unit" if name == UNITS else "latent" for name, _ in self.cards}
        frames = pair_frame(self.pairs), pd.concat(self.features, ignore_index=True)
        return browser_content(self.cards, *frames, nouns=nouns, terms=self.terms)


def _unit_words(row: Any) -> str:
    if row.effective is None:
        return "constant on these inputs"
    kinds = "" if row.kinds is None else f"; {row.kinds:.1f} kinds of inputs drive it"
    return f"{row.effective:.1f} effective features{kinds}" + ("" if row.ranked else "; fires too rarely to be ranked")


def _feature_words(row: Any) -> str:
    again = "" if row.again is None else f"cosine {row.again:.2f} with its partner of another seed"
    rare = "" if row.ranked else "fires too rarely to be ranked"
    return "; ".join(filter(None, (again, rare)))
