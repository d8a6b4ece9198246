"""The aligned-feature browser: matched and unmatched latents with the inputs that drive them, and what units carry."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from featalign import measure
from featalign.align.feature import FeatureMatch
from featalign.dictionaries.basis import Basis
from featalign.spaces.graph import Space
from featalign.studies.compare.examples import Examples
from featalign.studies.compare.rows import UnitRow
from featalign.studies.compare.trial import Trial

SHOWN_PAIRS, SHOWN_UNMATCHED, SHOWN_INPUTS = 60, 24, 6
ROWS = 16_000  # rows of activations that cards and measures are made from
Key = tuple[int, int]  # a sample among the examples, and a position in it


class Browser:
    """Collects the cards of every space; `content` is what the page's widget reads."""

    def __init__(self, trial: Trial, tokenizer: Any = None):
        problem = trial.problem
        self.trial, self.tokenizer = trial, tokenizer
        self.pair = (0, problem.reference)
        self.spaces: dict[str, Any] = {}
        self.used: dict[Key, int] = {}
        seen = [space for space in problem.graph.hidden if space.pre is not None and space.pre.paired]
        sites = [list(dict.fromkeys(problem.graphs[k][space.name].after for space in seen)) for k in self.pair]
        inputs = trial.scored or problem.cohort.probe
        self.task = problem.cohort.task
        if seen:
            self.examples = Examples.of(inputs, self.task, problem.clients[0], sites[0], trial.seed)
            self.held = [self.examples.activations(problem.clients[k], s) for k, s in zip(self.pair, sites)]

    @property
    def classes(self) -> list[str]:
        """Names of the classes, as many as labels go up to."""
        labels = self.examples.labels
        count = 0 if labels is None or len(labels) == 0 else int(labels.max()) + 1
        names = [str(name) for name in self.task.class_names]
        return names + [str(k) for k in range(len(names), count)] if labels is not None else []

    def space(self, space: Space, bases: tuple[Basis, Basis], match: FeatureMatch) -> None:
        """Add the cards of a space and record what its units carry."""
        trial, problem = self.trial, self.trial.problem
        own = [problem.graphs[k][space.name].after for k in self.pair]
        every = [held[site] for held, site in zip(self.held, own)]
        chosen = torch.randperm(len(every[0]), generator=torch.Generator().manual_seed(0))[:ROWS].sort().values
        origins = self.examples.origins(problem.clients[0], own[0], every[0])
        acts = [rows[chosen] for rows in every]
        codes = [basis.encode(rows) for basis, rows in zip(bases, acts)]
        labels = None
        if origins is not None:
            origins = (origins[0][chosen], origins[1][chosen])
            if self.examples.labels is not None:
                labels = self.examples.labels[origins[0]]
        for side, k in enumerate(self.pair):
            name = problem.cohort.names[k]
            parts = (acts[side], codes[side], bases[side].atoms, labels)
            trial.add("units", *unit_rows(trial.seed, space.name, name, *parts))
        cards = _Cards(self, codes, labels, origins)
        self.spaces[space.name] = {"pairs": cards.pairs(match), "unmatched": cards.unmatched(match)}

    def key(self, sample: int, position: int) -> str:
        """The name under which an input is shown, noted as used."""
        position = 0 if self.examples.pictures else position
        self.used.setdefault((sample, position), len(self.used))
        return f"{int(self.examples.index[sample])}.{position}"

    def content(self) -> dict[str, Any]:
        """Spaces, inputs, pictures and names for the widget; empty without spaces."""
        if not self.spaces:
            return {}
        keys, labels = list(self.used), self.examples.labels
        texts, sheet = self.examples.shown(keys, self.tokenizer)
        inputs = {}
        for place, ((sample, position), text) in enumerate(zip(keys, texts)):
            entry: dict[str, Any] = {"place": place, "label": None if labels is None else int(labels[sample])}
            inputs[f"{int(self.examples.index[sample])}.{position}"] = entry | ({} if text is None else {"text": text})
        names = [self.trial.cohort.names[k] for k in self.pair]
        return {"spaces": self.spaces, "inputs": inputs, "sheet": sheet, "classes": self.classes, "names": names}


class _Cards:
    """Cards of one space: codes `[rows, F]` of both clients, labels `[rows]`, origins of the rows."""

    def __init__(
        self,
        browser: Browser,
        codes: Sequence[torch.Tensor],
        labels: torch.Tensor | None,
        origins: tuple[torch.Tensor, torch.Tensor] | None,
    ):
        self.browser, self.codes, self.origins = browser, codes, origins
        classes = len(browser.classes)
        self.profiles = [None if labels is None else measure.class_profile(each, labels, classes) for each in codes]
        # positions of a picture show the same picture: the strongest of each input stands for it
        self.top = [each.topk(min(4 * SHOWN_INPUTS, len(each)), dim=0).indices.T for each in codes]

    def latent(self, side: int, index: int) -> dict[str, Any]:
        """Density, strongest inputs and class profile of one latent."""
        values, profile = self.codes[side][:, index], self.profiles[side]
        inputs: dict[str, float] = {}
        seen: set[int] = set()
        for row in self.top[side][index].tolist() if self.origins is not None else ():
            assert self.origins is not None
            sample = int(self.origins[0][row])
            if values[row] > 0 and sample not in seen and len(inputs) < SHOWN_INPUTS:
                seen.add(sample)
                inputs[self.browser.key(sample, int(self.origins[1][row]))] = float(values[row])
        return {
            "latent": int(index),
            "inputs": list(inputs),
            "values": list(inputs.values()),
            "profile": [] if profile is None else np.asarray(profile[index]).round(4).tolist(),
            "density": float((values > 0).float().mean()),
        }

    def pairs(self, match: FeatureMatch) -> list[dict[str, Any]]:
        """Matched pairs, those that explain most first."""
        shared = match.scores * np.sqrt(match.energy[0][match.pairs[:, 0]] * match.energy[1][match.pairs[:, 1]])
        found = []
        for row in np.argsort(-shared)[:SHOWN_PAIRS]:
            i, j = match.pairs[row]
            rivals = np.delete(match.correlation[i], j)
            found.append(
                {
                    "a": self.latent(0, i),
                    "b": self.latent(1, j),
                    "score": float(match.scores[row]),
                    "gain": float(match.gains[row]),
                    "next_best": float(rivals.max()) if len(rivals) else 0.0,
                    "energy": float(shared[row]),
                }
            )
        return found

    def unmatched(self, match: FeatureMatch) -> list[list[dict[str, Any]]]:
        """For each client its strongest latents without a partner."""
        found = []
        for side in (0, 1):
            free = np.setdiff1d(np.flatnonzero(match.energy[side] > 0), match.pairs[:, side])
            strongest = free[np.argsort(-match.energy[side][free])][:SHOWN_UNMATCHED]
            best = match.correlation.max(axis=1 - side)
            found.append([{**self.latent(side, int(i)), "best": float(best[i])} for i in strongest])
        return found


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
