"""What a toy comparison found: losses, matching against the truth, regimes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from featalign.toy_fusion.world import ToySettings


@dataclass(frozen=True)
class ToyResult:
    """Figures of a comparison, one entry per seed in every list.

    Attributes:
        settings: what was run.
        single, joint: held-out loss of each client `[seeds][clients]` and of one model trained on everything `[seeds]`.
        losses: `method -> kind -> [seeds]`, kinds 'raw', 'calibrated' (bias and one gain on the task) and 'distilled'
            (the same, fitted to what each client returns on its own inputs, without the task).
        survival: `method -> [n]` share of each feature's energy that the calibrated model returns, mean over seeds.
        matching: per seed: neuron and feature correlation, precision, recall, recovered features.
        regimes: the diagnosis per seed.
        example: models and dictionaries of the first seed, for figures; not saved.
    """

    settings: ToySettings
    zero: float
    single: list[list[float]]
    joint: list[float]
    losses: dict[str, dict[str, list[float]]]
    survival: dict[str, list[float]]
    matching: list[dict[str, float]]
    regimes: list[dict[str, Any]]
    words: tuple[str, ...] = ()
    example: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """The JSON of `featalign toy compare --json`."""

        def mean(key: str) -> float:
            return float(np.mean([row[key] for row in self.matching]))

        names = [row["name"] for row in self.regimes]
        verdict = max(set(names), key=names.count)
        return {
            "config": asdict(self.settings),
            "zero": {"loss": self.zero},
            "joint": {"loss": spread(self.joint)},
            "single": {"loss": spread(np.mean(self.single, axis=1).tolist()), "values": self.single},
            "methods": {name: {kind: spread(v) for kind, v in kinds.items()} for name, kinds in self.losses.items()},
            "matching": {
                "neuron": {"mean_abs_corr": mean("neuron")},
                "feature": {
                    "mean_abs_corr": mean("feature"),
                    "precision": mean("precision"),
                    "recall": mean("recall"),
                    "true_pairs": [row["true_pairs"] for row in self.matching],
                    "false_pairs": [row["false_pairs"] for row in self.matching],
                },
                "mcc": mean("mcc"),
                "recovered": [row["recovered"] for row in self.matching],
            },
            "regime": {"name": verdict, "agreement": names.count(verdict) / len(names), "values": self.regimes},
            "winner": self.winner,
            "survival": self.survival,
        }  # fmt: skip

    @property
    def winner(self) -> str:
        """The method with the least calibrated loss."""
        return min(self.losses, key=lambda name: np.mean(self.losses[name]["calibrated"]))

    def to_frame(self) -> pd.DataFrame:
        """One row per method: mean loss of each kind, and the ratio of the calibrated one to joint training."""
        joint = float(np.mean(self.joint))
        rows = [
            {"method": name, **{kind: np.mean(v) for kind, v in kinds.items()}, "std": np.std(kinds["calibrated"])}
            for name, kinds in self.losses.items()
        ]
        frame = pd.DataFrame(rows).sort_values("calibrated", ignore_index=True)
        frame["times joint"] = frame["calibrated"] / joint
        return frame

    def rows(self) -> list[dict[str, Any]]:
        """`to_frame` with the parents and the ceiling beside the methods."""
        extra = [
            {"method": "(joint training)", "calibrated": float(np.mean(self.joint))},
            {"method": "(one client)", "calibrated": float(np.mean(self.single))},
        ]
        frame = pd.concat([pd.DataFrame(extra), self.to_frame()], ignore_index=True)
        frame["times joint"] = frame["calibrated"] / np.mean(self.joint)
        frame = frame[["method", "raw", "distilled", "calibrated", "std", "times joint"]].astype(object)
        records = frame.where(frame.notna(), "").to_dict(orient="records")
        return [{str(key): value for key, value in row.items()} for row in records]

    def summary(self) -> str:
        """The regime, matching and winner in three lines."""
        facts = self.to_dict()
        feature, regime = facts["matching"]["feature"], facts["regime"]
        common = self.settings.n if self.settings.shared is None else self.settings.shared
        return (
            f"matched |correlation|: neurons {facts['matching']['neuron']['mean_abs_corr']:.2f}, features "
            f"{feature['mean_abs_corr']:.2f}; true pairs {feature['true_pairs']} of {common}, "
            f"false {feature['false_pairs']}\n"
            f"regime: {regime['name']} ({regime['agreement']:.0%} of seeds), recommends "
            f"{self.regimes[0]['recommended']}: {self.regimes[0]['explanation']}\nbest method: {self.winner}"
        )

    def __repr__(self) -> str:
        return self.to_frame().to_string(index=False, float_format="{:.3f}".format)

    def _repr_html_(self) -> str:
        return self.to_frame().to_html(index=False, float_format="{:.3f}".format)


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean, standard deviation and the values."""
    return {"mean": float(np.mean(values)), "std": float(np.std(values)), "values": [float(v) for v in values]}
