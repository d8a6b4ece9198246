"""What a polysemanticity diagnosis holds: per layer the verdict, its evidence and nulls, and the cards of the page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from featalign import measure, storage
from featalign.dictionaries import Dictionary
from featalign.measure import Score, mean_score
from featalign.spaces.splice import Splice

SHOWN_UNITS, SHOWN_FEATURES, SHOWN_INPUTS = 24, 64, 6
MARGIN = 0.05  # explained variance by which a dictionary must beat a random one to be read


@dataclass
class LayerDiagnosis:
    """One layer: dictionaries of several seeds, the same on a control network, and every measure with its null.

    Attributes:
        name, units, alive: the space, its size and the units that vary.
        dictionaries: one per seed; the first is the one shown.
        random_variance: variance that a random dictionary of the same shape explains.
        consistency: PW-MCC between seeds, null for random directions.
        per_unit, per_unit_control: effective features of each unit, here and in the network with shuffled weights.
        effective: their mean, null the control's mean; psi: effective features per dimension, null the control's.
        unit_selectivity, latent_selectivity: class selectivity, null shuffled labels; None without labels.
        probing, unit_probing: accuracy of 1-sparse probes on latents and on units.
        splice: what the network loses when the layer is replaced by its reconstruction.
        sweep: psi, explained variance and L0 over widths, k and seeds, here and in the control.
        cards: units and features of the page.
    """

    name: str
    units: int
    alive: int
    dictionaries: list[Dictionary]
    random_variance: float
    consistency: Score
    per_unit: np.ndarray
    per_unit_control: np.ndarray
    per_unit_random: np.ndarray
    effective: Score
    psi: Score
    privileged: Score
    sweep: pd.DataFrame
    cards: dict[str, Any]
    unit_selectivity: Score | None = None
    latent_selectivity: Score | None = None
    probing: Score | None = None
    unit_probing: Score | None = None
    splice: Splice | None = None

    @property
    def quality(self) -> Any:
        """Held-out quality of the dictionary that is shown."""
        return self.dictionaries[0].quality

    @property
    def readable(self) -> bool:
        """Whether the dictionary explains more than a random one and comes out alike from two seeds."""
        gained = self.quality is not None and self.quality.explained_variance > self.random_variance + MARGIN
        return gained and self.consistency.evidence and self.consistency.value > self.consistency.null

    @property
    def verdict(self) -> str:
        """One sentence in plain words; 'no evidence' wherever a null is not beaten."""
        if self.quality is None or self.quality.explained_variance <= self.random_variance + MARGIN:
            return (
                "No evidence: the dictionary explains no more of this layer than random directions do, so nothing that "
                "it says about units can be read."
            )
        if not self.readable:
            return "No evidence: dictionaries of different seeds do not agree more than random directions would."
        if not self.learned:
            return (
                "No evidence that training shaped this layer's units: they look like those of the same network "
                "with shuffled weights."
            )
        word = "more" if self.effective.value > self.effective.null else "fewer"
        mixed = "polysemantic" if self.effective.value >= 2 else "close to monosemantic"
        return (
            f"Units are {mixed}: a unit carries {self.effective.value:.1f} features on average, {word} than the "
            f"{self.effective.null:.1f} of the same network with shuffled weights; the layer uses "
            f"{self.psi.value:.2f} effective features per dimension."
        )

    @property
    def learned(self) -> bool:
        """Whether effective features per unit differ from the control by more than a tenth, beyond both intervals."""
        control = mean_score(self.per_unit_control)
        apart = self.effective.interval[0] > control.interval[1] or self.effective.interval[1] < control.interval[0]
        ratio = self.effective.value / max(control.value, 1e-9)
        return bool(apart and not 1 / 1.1 < ratio < 1.1)

    @property
    def class_verdict(self) -> str:
        """Whether latents are about classes, against shuffled labels."""
        if self.latent_selectivity is None or self.unit_selectivity is None:
            return "Classes: not measured (no labels given)."
        if not (self.readable and self.learned):
            return "Classes: no evidence either; the inputs alone, unlearned, give latents class preferences."
        if not self.latent_selectivity.evidence or self.latent_selectivity.value <= self.latent_selectivity.null:
            return "Classes: no evidence that latents select classes (shuffled labels do as well)."
        return (
            f"Classes: latents select classes at {self.latent_selectivity.value:.2f}, units at "
            f"{self.unit_selectivity.value:.2f}; with shuffled labels {self.latent_selectivity.null:.2f} and "
            f"{self.unit_selectivity.null:.2f}."
        )

    def to_dict(self) -> dict[str, Any]:
        scores = ["consistency", "effective", "psi", "privileged", "unit_selectivity", "latent_selectivity"]
        scores += ["probing", "unit_probing", "splice"]
        found = {name: getattr(self, name).to_dict() if getattr(self, name) else None for name in scores}
        return {
            "units": self.units,
            "alive": self.alive,
            "verdict": self.verdict,
            "classes": self.class_verdict,
            "readable": self.readable,
            "learned": self.learned,
            "quality": self.quality.to_dict() if self.quality else None,
            "width": self.dictionaries[0].width,
            "k": self.dictionaries[0].k,
            "architecture": self.dictionaries[0].architecture,
            "random_variance": self.random_variance,
            "shrinkage": self.cards.get("shrinkage"),
            "redundancy": measure.redundancy(self.dictionaries[0].atoms),
            **found,
            "per_unit": self.per_unit.round(3).tolist(),
            "per_unit_control": self.per_unit_control.round(3).tolist(),
            "per_unit_random": self.per_unit_random.round(3).tolist(),
            "sweep": self.sweep.to_dict(orient="records"),
        }


@dataclass
class Diagnosis:
    """The diagnosis of a network; `save` writes the page."""

    title: str
    layers: dict[str, LayerDiagnosis]
    inputs: torch.Tensor
    labels: torch.Tensor | None
    class_names: list[str]
    facts: dict[str, Any]
    folder: Path | None = None

    def to_dict(self) -> dict[str, Any]:
        layers = {name: layer.to_dict() for name, layer in self.layers.items()}
        return {"title": self.title, "facts": self.facts, "layers": layers}

    def to_frame(self) -> pd.DataFrame:
        """A row per layer."""
        rows = []
        for name, layer in self.layers.items():
            quality = layer.quality
            rows.append(
                {
                    "layer": name,
                    "units": layer.units,
                    "width": layer.dictionaries[0].width,
                    "explained variance": quality.explained_variance,
                    "L0": quality.l0,
                    "seeds agree (PW-MCC)": layer.consistency.value,
                    "features per unit": layer.effective.value,
                    "control": layer.effective.null,
                    "psi": layer.psi.value,
                    "verdict": layer.verdict.split(":")[0],
                }
            )
        return pd.DataFrame(rows)

    def __repr__(self) -> str:
        return self.to_frame().round(3).to_string(index=False)

    def _repr_html_(self) -> str:
        return self.to_frame().round(3).to_html(index=False)

    def save(self, folder: Path | str, overwrite: bool = False) -> Path:
        """Write results.json, browser.json, report.html and the dictionaries; the folder appears when complete."""
        from featalign.plots.sprites import sprite_sheet
        from featalign.report.diagnose import build_diagnosis

        used = sorted({i for layer in self.layers.values() for i in _inputs_of(layer.cards)})
        labels = self.labels if self.labels is not None else torch.zeros(len(self.inputs), dtype=torch.long)
        browser = {
            "spaces": {name: layer.cards for name, layer in self.layers.items()},
            "inputs": {str(i): {"place": place, "label": int(labels[i])} for place, i in enumerate(used)},
            "sheet": sprite_sheet(self.inputs[used].numpy()),
            "classes": self.class_names,
        }
        with storage.atomic_folder(folder, overwrite, kind="diagnosis") as temporary:
            storage.write_json(temporary / "results.json", self.to_dict())
            storage.write_json(temporary / "browser.json", browser)
            for name, layer in self.layers.items():
                layer.dictionaries[0].save(temporary / "dictionaries" / storage.safe_name(name))
            build_diagnosis(temporary)
        self.folder = Path(folder)
        return self.folder


def _inputs_of(cards: dict[str, Any]) -> list[int]:
    shown = [*cards["units"], *cards["features"]]
    return [i for card in shown for i in (*card["inputs"], *card.get("spread", []))]


def make_cards(
    activations: torch.Tensor,
    codes: torch.Tensor,
    basis: Dictionary,
    per_unit: torch.Tensor,
    labels: torch.Tensor | None,
    rivals: Sequence[tuple[str, torch.Tensor]],
    effect: Callable[[int], list[float]] | None,
) -> dict[str, Any]:
    """Cards of the most polysemantic units and of the features they carry, linked to each other.

    Args:
        activations `[samples, n]`, codes `[samples, F]`: on the page's examples, whose rows the cards name.
        rivals: names and codes of other dictionaries on the same examples, for partners.
        effect: class effect of a latent, a number per class, or None.
    """
    share = codes.double().pow(2).mean(0)[:, None] * basis.atoms.double().pow(2)
    share = share / share.sum(0).clamp_min(1e-300)  # [F, n], what each unit's variance is made of
    units = torch.nan_to_num(per_unit, nan=-1.0).topk(min(SHOWN_UNITS, len(per_unit))).indices.tolist()
    carried = {unit: share[:, unit].topk(min(8, len(share))).indices.tolist() for unit in units}
    energy = codes.double().pow(2).mean(0)
    wanted = list(dict.fromkeys(j for row in zip(*carried.values()) for j in row)) if carried else []
    wanted += [j for j in energy.argsort(descending=True).tolist() if j not in set(wanted)]
    features = [j for j in wanted if energy[j] > 0][:SHOWN_FEATURES]
    unit_profile = measure.class_profile(activations, labels).round(decimals=3) if labels is not None else None
    profile = measure.class_profile(codes, labels).round(decimals=3) if labels is not None else None
    partners = {name: _partners(codes, other) for name, other in rivals}
    unit_cards = [
        {
            "id": unit,
            "effective": round(float(per_unit[unit]), 2),
            "features": [[j, round(float(share[j, unit]), 3)] for j in carried[unit] if j in set(features)],
            "inputs": activations[:, unit].topk(min(SHOWN_INPUTS, len(activations))).indices.tolist(),
            "profile": unit_profile[unit].tolist() if unit_profile is not None else [],
        }
        for unit in units
        if float(per_unit[unit]) > 0
    ]
    feature_cards = [
        {
            "id": j,
            **_firing(codes[:, j]),
            "profile": profile[j].tolist() if profile is not None else [],
            "effect": [round(value, 3) for value in effect(j)] if effect else [],
            "units": [
                [u, round(float(share[j, u]), 3)] for u in share[j].topk(min(6, share.shape[1])).indices.tolist()
            ],
            "partners": [
                {"who": name, "latent": int(index[j]), "score": round(float(best[j]), 3)}
                for name, (index, best) in partners.items()
            ],
        }
        for j in features
    ]
    return {"units": unit_cards, "features": feature_cards}


def _firing(values: torch.Tensor) -> dict[str, Any]:
    """Density of a latent, the samples that drive it most, and samples at the quartiles of its firing."""
    ranked = values.argsort(descending=True)[: int((values > 0).sum())]
    places = [int(q * (len(ranked) - 1)) for q in (0.25, 0.5, 0.75, 1.0)] if len(ranked) else []
    return {
        "density": round(float((values > 0).float().mean()), 4),
        "inputs": ranked[:SHOWN_INPUTS].tolist(),
        "spread": [int(ranked[place]) for place in places],
    }


def _partners(codes: torch.Tensor, other: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """For each latent its best correlated latent of another dictionary on the same samples: `(index, correlation)`."""
    a, b = (values.double() - values.double().mean(0) for values in (codes, other))
    a, b = (values / values.norm(dim=0).clamp_min(1e-12) for values in (a, b))
    best = (a.T @ b).max(1)
    return best.indices, best.values
