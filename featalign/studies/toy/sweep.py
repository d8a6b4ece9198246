"""Where the feature basis wins, ties and loses over density and size, and whether the regime knew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from featalign.studies.toy.config import ToySettings
from featalign.studies.toy.result import ToyResult
from featalign.studies.toy.run import compare

SAME_FEATURES = ("ot-acts", "procrustes", "feature-reencode")
OWN_FEATURES = (*SAME_FEATURES, "feature-union")
TIE = 0.05  # losses closer than this share are a tie
FLOOR = 1e-3  # share of the energy below which a loss counts as exact
SHOWN = ("permutation", "orthogonal", "linear", "features", "feature_correlation", "matched_first", "matched")


def default_settings(quick: bool = False, first_seed: int = 1) -> tuple[ToySettings, ...]:
    """36 settings: n from 8 to 512, m/n from 1/16 to 1, densities .01 to .2, four with features of their own.

    The thresholds of the regime were set on `first_seed=0`; the default draws other models.
    """
    grid = [(n, n * share // 8, p) for n in (8, 16, 32, 64) for share in (2, 4, 8) for p in (0.05, 0.2)]
    grid += [(128, m, p) for m in (16, 32) for p in (0.02, 0.05)]
    grid += [(256, 16, 0.02), (256, 32, 0.02), (512, 32, 0.01), (512, 64, 0.01)]
    if quick:
        grid = [(n, n * share // 8, p) for n, p in ((16, 0.05), (16, 0.2), (32, 0.05)) for share in (2, 4, 8)]
    common = ToySettings(seeds=1, first_seed=first_seed, steps=1500, sae_steps=800, methods=SAME_FEATURES)
    shared = [replace(common, n=n, m=m, density=p) for n, m, p in grid]
    own = [(24, 8, 0.04, 8), (24, 16, 0.04, 8), (48, 16, 0.02, 16), (16, 8, 0.05, 0)][: 1 if quick else 4]
    return (*shared, *(replace(common, n=n, m=m, density=p, shared=s, methods=OWN_FEATURES) for n, m, p, s in own))


@dataclass(frozen=True)
class Sweep:
    """One comparison per setting, and what the regime said before anything was fused."""

    results: tuple[ToyResult, ...]

    def to_frame(self) -> pd.DataFrame:
        """One row per setting: calibrated losses, winner, outcome of the feature basis, verdict, whether it agrees.

        The verdict agrees when the method it recommends is within `TIE` of the best.
        """
        return pd.DataFrame([_row(result) for result in self.results])

    @property
    def agreement(self) -> float:
        """Share of settings in which the regime's recommendation is within `TIE` of the best method."""
        return float(self.to_frame()["agrees"].mean())

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        frame = self.to_frame()
        return {
            "settings": len(frame),
            "agreement": self.agreement,
            "outcomes": frame["outcome"].value_counts().to_dict(),
            "rows": frame.to_dict(orient="records"),
        }

    def __repr__(self) -> str:
        return self.to_frame().to_string(index=False, float_format="{:.3f}".format)

    def _repr_html_(self) -> str:
        return self.to_frame().to_html(index=False, float_format="{:.3f}".format)


def _row(result: ToyResult) -> dict[str, Any]:
    methods = result.frames["methods"].query("available").set_index("method")
    losses = {str(name): result.loss(str(name)) for name in methods.index}
    verdict, floor = result.frames["regimes"].iloc[0], FLOOR * float(result.facts["zero"])
    best = {
        basis: min(losses[str(name)] for name in methods.index[methods["basis"] == basis])
        for basis in ("neuron", "feature")
    }
    ratio = (best["feature"] + floor) / (best["neuron"] + floor)
    chosen = losses.get(verdict["recommended"], np.inf)
    config = asdict(result.config)
    return {
        **{key: config[key] for key in ("data", "n", "m", "density", "shared", "hidden")},
        **losses,
        "single": result.single,
        "winner": result.winner,
        "ratio": ratio,
        "outcome": "wins" if ratio < 1 - TIE else "loses" if ratio > 1 + TIE else "ties",
        "regime": verdict["name"],
        "recommended": verdict["recommended"],
        "agrees": bool(chosen + floor <= (1 + TIE) * (min(losses.values()) + floor)),
        **{key: verdict[key] for key in SHOWN},
    }


def sweep(settings: Sequence[ToySettings] | None = None, quick: bool = False, progress: bool = True) -> Sweep:
    """Compare at every setting (`default_settings` when none are given); each must name methods of both bases."""
    from tqdm.auto import tqdm

    chosen = tuple(settings) if settings is not None else default_settings(quick)
    bar = tqdm(chosen, disable=not progress, desc="sweep")
    return Sweep(tuple(replace(compare(each, progress=False), example={}) for each in bar))  # examples take memory
