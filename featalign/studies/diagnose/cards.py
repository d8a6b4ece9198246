"""Cards of units and of the features they carry, linked to each other, with the inputs that drive them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from featalign import measure
from featalign.clients.cohort import Cohort
from featalign.data.batch import unwrap
from featalign.data.inputs import Inputs
from featalign.data.task import labels_of
from featalign.dictionaries import Basis
from featalign.spaces.capture import evaluating, stream
from featalign.spaces.graph import Site, Space
from featalign.spaces.splice import first_replaced
from featalign.studies.compare.examples import Examples
from featalign.studies.diagnose.layer import Layer
from featalign.studies.diagnose.reading import Reading
from featalign.studies.diagnose.verdicts import MODEL, RANDOM, RANDOM_WEIGHTS, WEIGHTS

SHOWN_UNITS, SHOWN_FEATURES, SHOWN_INPUTS = 24, 64, 6
LOOKED, ROWS = 2000, 4000  # inputs of each kind that cards look through, and rows of activations
TIE = 0.01  # correlations closer than this are a tie
Key = tuple[int, int]  # an input and a position in it


class Cards:
    """Collects the cards of every layer; `content` is what the page's widget reads."""

    def __init__(
        self, cohort: Cohort, source: Inputs, held: Inputs, train: Reading, seen: Reading, tokenizer: Any = None
    ):
        self.cohort, self.tokenizer = cohort, tokenizer
        both = [(held, seen)] if held is source else [(held, seen), (source, train)]
        self.parts = [(inputs.sample(len(inputs)).subset(slice(0, LOOKED)), reading) for inputs, reading in both]
        self.sizes = [len(inputs) for inputs, _ in self.parts]
        batches = tuple(batch for inputs, _ in self.parts for batch in inputs)
        found = [labels_of(cohort.task, inputs) for inputs, _ in self.parts]
        self.labels = torch.cat(found) if all(each is not None for each in found) else None  # type: ignore[arg-type]
        self.examples = Examples(batches, torch.arange(sum(self.sizes)), self.labels)
        self.spaces: dict[str, Any] = {}
        self.used: dict[Key, int] = {}

    @property
    def count(self) -> int:
        """Inputs looked through."""
        return sum(self.sizes)

    @property
    def classes(self) -> list[str]:
        """Names of classes by label, from the task."""
        names = [str(name) for name in self.cohort.task.class_names]
        if self.labels is None or not len(self.labels):
            return names
        return names + [str(k) for k in range(len(names), int(self.labels.max()) + 1)]

    def add(self, space: Space, layer: Layer) -> None:
        """Add the cards of a layer."""
        rows, origins = self._rows(space.after, [MODEL, *self.cohort.names[1:]])
        if origins is None or not len(origins):
            self.spaces[space.name] = {"units": [], "features": [], "facts": "no cards: rows tell no input"}
            return
        basis = layer.bases[MODEL]
        codes = basis.encode(rows[MODEL])
        labels = None if self.labels is None else self.labels[origins[:, 0]]
        rivals = [(f"seed {seed}", d.encode(rows[MODEL])) for seed, d in zip(layer.config.seeds[1:], layer.seeds[1:])]
        skip = {MODEL, WEIGHTS, RANDOM, RANDOM_WEIGHTS}
        rivals += [(name, b.encode(rows[name])) for name, b in layer.bases.items() if name not in skip]
        page = _LayerCards(self, layer, rows[MODEL], codes, basis, labels, origins, rivals)
        page.effect = effect_of(self.cohort, space.after, basis, self.parts[0][0])
        self.spaces[space.name] = page.content()

    def _rows(self, site: Site, names: Sequence[str]) -> tuple[dict[str, torch.Tensor], torch.Tensor | None]:
        found: dict[str, list[torch.Tensor]] = {name: [] for name in names}
        where, start = [], 0
        for (_, reading), size in zip(self.parts, self.sizes):
            origins = reading.origins[site]
            if origins is None:
                return {}, None
            chosen = torch.nonzero(origins[:, 0] < size).flatten()[:ROWS]
            for name in names:
                found[name].append(reading.rows[name][site][chosen])
            where.append(origins[chosen] + torch.tensor([start, 0]))
            start += size
        return {name: torch.cat(parts) for name, parts in found.items()}, torch.cat(where)

    def key(self, sample: int, position: int) -> str:
        """The name under which an input is shown, noted as used."""
        position = 0 if self.examples.pictures else position
        self.used.setdefault((sample, position), len(self.used))
        return f"{sample}.{position}"

    def content(self) -> dict[str, Any]:
        """Layers, inputs, pictures and names for the widget."""
        keys = list(self.used)
        texts, sheet = self.examples.shown(keys, self.tokenizer)
        inputs = {}
        for place, ((sample, position), text) in enumerate(zip(keys, texts)):
            entry: dict[str, Any] = {"place": place}
            entry |= {} if self.labels is None else {"label": int(self.labels[sample])}
            inputs[f"{sample}.{position}"] = entry | ({} if text is None else {"text": text})
        return {"spaces": self.spaces, "inputs": inputs, "sheet": sheet, "classes": self.classes}


class _LayerCards:
    """Cards of one layer: activations `[rows, n]`, codes `[rows, F]`, labels `[rows]`, origins `[rows, 2]`."""

    def __init__(
        self,
        cards: Cards,
        layer: Layer,
        acts: torch.Tensor,
        codes: torch.Tensor,
        basis: Basis,
        labels: torch.Tensor | None,
        origins: torch.Tensor,
        rivals: Sequence[tuple[str, torch.Tensor]],
    ):
        self.cards, self.layer, self.acts, self.codes, self.origins = cards, layer, acts, codes, origins
        share = codes.double().pow(2).mean(0)[:, None] * basis.atoms.double().pow(2)
        self.share = share / share.sum(0).clamp_min(1e-300)  # [F, n], what each unit's variance is made of
        self.classes = len(cards.classes)
        self.profiles = [
            None if labels is None else measure.class_profile(each, labels, self.classes) for each in (acts, codes)
        ]
        self.partners = {name: _partners(codes, other) for name, other in rivals}
        self.effect: Callable[[int], list[float]] | None = None

    def content(self) -> dict[str, Any]:
        """Cards of the ranked units that carry most, and of features: theirs first, then the strongest."""
        units = [row for row in self.layer.rows["units"] if row.ranked and row.effective is not None]
        ordered = sorted(units, key=lambda row: -row.effective)
        features = {row.latent: row for row in self.layer.rows["features"] if row.ranked}
        carried = {u.unit: self._largest(self.share[:, u.unit], 8) for u in ordered[:SHOWN_UNITS]}
        wanted = list(dict.fromkeys(j for ranks in zip(*carried.values()) for j in ranks)) if carried else []
        wanted += sorted(features, key=lambda j: -features[j].energy)
        chosen = [j for j in dict.fromkeys(wanted) if j in features][:SHOWN_FEATURES]
        facts = (
            f"{len(carried)} of {len(units)} ranked units (of {self.layer.units}) and {len(chosen)} of {len(features)} "
            f"ranked features (of {self.codes.shape[1]}) are shown."
        )
        return {
            "units": [self._unit(row, carried[row.unit]) for row in ordered[:SHOWN_UNITS]],
            "features": [self._feature(features[j]) for j in chosen],
            "facts": facts,
        }

    def _largest(self, values: torch.Tensor, count: int) -> list[int]:
        return values.topk(min(count, len(values))).indices.tolist()

    def _unit(self, row: Any, carried: Sequence[int]) -> dict[str, Any]:
        u = row.unit
        rest = self.acts[:, u].median()
        inputs = self._inputs((self.acts[:, u] - rest).argsort(descending=True).tolist())
        return {
            "id": u,
            "effective": round(row.effective, 2),
            "kinds": None if row.kinds is None else round(row.kinds, 1),
            "features": [[j, round(float(self.share[j, u]), 3)] for j in carried],
            "inputs": inputs,
            "profile": self._profile(0, u),
        }

    def _feature(self, row: Any) -> dict[str, Any]:
        j = row.latent
        ranked = self.codes[:, j].argsort(descending=True)[: int((self.codes[:, j] > 0).sum())].tolist()
        places = [ranked[int(q * (len(ranked) - 1))] for q in (0.25, 0.5, 0.75, 1.0)] if ranked else []
        return {
            "id": j,
            "density": round(row.firing_rate, 4),
            "again": None if row.again is None else round(row.again, 2),
            "inputs": self._inputs(ranked),
            "spread": [self.cards.key(*self.origins[place].tolist()) for place in places],
            "profile": self._profile(1, j),
            "effect": [round(value, 3) for value in self.effect(j)] if self.effect else [],
            "units": [[u, round(float(self.share[j, u]), 3)] for u in self._largest(self.share[j], 6)],
            "partners": [{"who": name, **self._partner(best, j)} for name, best in self.partners.items()],
        }

    def _partner(self, best: tuple[torch.Tensor, torch.Tensor], j: int) -> dict[str, Any]:
        index, score = best[0][j], best[1][j]
        tie = len(index) > 1 and float(score[0] - score[1]) < TIE
        found = {"latent": int(index[0]), "score": round(float(score[0]), 3)}
        return found | ({"tie": int(index[1])} if tie else {})

    def _inputs(self, rows: Sequence[int]) -> list[str]:
        """The first rows of different inputs."""
        found: dict[int, str] = {}
        for row in rows[: 8 * SHOWN_INPUTS]:
            sample, position = self.origins[row].tolist()
            if sample not in found and len(found) < SHOWN_INPUTS:
                found[sample] = self.cards.key(sample, position)
        return list(found.values())

    def _profile(self, side: int, index: int) -> list[float]:
        profile = self.profiles[side]
        return [] if profile is None else np.asarray(profile[index]).round(3).tolist()


def _partners(codes: torch.Tensor, other: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """For each latent its two best correlated latents of another dictionary: `(index [F, 2], correlation [F, 2])`."""
    best = measure.correlation(codes, other).topk(min(2, other.shape[1]), dim=1)
    return best.indices, best.values


def effect_of(cohort: Cohort, site: Site, basis: Basis, inputs: Inputs) -> Callable[[int], list[float]] | None:
    """Mean change of each output when a latent's contribution is taken out, over inputs where it is active.

    None where outputs are not `[samples, outputs]` of at most 40, or the site is no whole module's output.
    """
    model = cohort.modules[0]
    if site.side != "out" or site.dim is not None:
        return None
    some = inputs.subset(slice(0, 256))
    outputs, held = next(stream(model, some, [site], 256))
    codes = basis.encode(held[site])
    if outputs.dim() != 2 or outputs.shape[1] > 40 or len(codes) != len(outputs):
        return None
    part = model.get_submodule(site.module)

    def effect(latent: int) -> list[float]:
        on = torch.nonzero(codes[:, latent] > 0).flatten()[:64]
        if len(on) == 0:
            return [0.0] * outputs.shape[1]
        removed = codes[on, latent, None] * basis.atoms[latent]
        hook = part.register_forward_hook(lambda _m, _i, out: first_replaced(out, lambda t: t - removed.to(t)))
        try:
            with evaluating(model):
                edited = unwrap(some.subset(on).example(len(on)).run(model))
        finally:
            hook.remove()
        return (outputs[on] - edited).mean(0).tolist()

    return effect
