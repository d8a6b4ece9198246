"""The result of a diagnosis: frames by layer, in memory and as a run folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd

from featalign import options, storage
from featalign.dictionaries import Basis, Dictionary
from featalign.studies.diagnose.config import DiagnoseConfig, DiagnoseRunConfig
from featalign.studies.diagnose.rows import FRAMES
from featalign.studies.diagnose.verdicts import MODEL
from featalign.studies.result import StudyResult, study

if TYPE_CHECKING:
    import plotly.graph_objects as go


@study("diagnose")
class DiagnoseResult(StudyResult):
    """What `diagnose` and `run` return: the frames in `rows`, headline `to_frame()`, `figures`, `page()`.

    Attributes:
        dictionaries: the basis that is shown of each layer; empty for a result that was loaded.
    """

    rows: ClassVar[Mapping[str, type]] = FRAMES
    config_type: ClassVar[type] = DiagnoseRunConfig

    dictionaries: dict[str, Basis] = field(default_factory=dict)

    @property
    def layers(self) -> list[str]:
        """Layers that were diagnosed."""
        frame = self.frames["layers"]
        return [str(name) for name in frame.loc[frame["note"] == "", "layer"]]

    def layer(self, name: str) -> pd.Series:
        """The row of one layer: verdicts, words, budget."""
        frame = self.frames["layers"]
        return frame[frame["layer"] == name].iloc[0]

    def measure(self, layer: str, name: str) -> pd.Series | None:
        """A measure of one layer with its null, or None where it was not measured."""
        frame = self.frames["measures"]
        found = frame[(frame["layer"] == layer) & (frame["measure"] == name)]
        return None if found.empty else found.iloc[0]

    def function(self, layer: str, metric: str) -> pd.Series | None:
        """A metric of the network, spliced and ablated, or None where nothing was scored."""
        frame = self.frames["function"]
        found = frame[(frame["layer"] == layer) & (frame["metric"] == metric)]
        return None if found.empty else found.iloc[0]

    def to_frame(self) -> pd.DataFrame:
        """A row per layer: verdicts, effective features per unit with the control's, and the dictionary's quality."""
        dictionaries = self.frames["dictionaries"]
        found = []
        for name in self.layers:
            row, effective = self.layer(name), self.measure(name, "effective")
            own = dictionaries[(dictionaries["layer"] == name) & (dictionaries["network"] == MODEL)].iloc[0]
            recovered = self.function(name, "recovered")
            found.append(
                {
                    "layer": name,
                    "units": row["units"],
                    "superposed": row["superposed"],
                    "changed": row["changed"],
                    "features_per_unit": None if effective is None else effective["value"],
                    "control": None if effective is None else effective["null"],
                    "latents": own["width"],
                    "explained_variance": own["explained_variance"],
                    "loss_recovered": None if recovered is None else recovered["spliced"],
                }
            )
        columns = ["layer", "units", "superposed", "changed", "features_per_unit", "control", "latents"]
        return pd.DataFrame(found, columns=[*columns, "explained_variance", "loss_recovered"])

    def lines(self) -> list[str]:
        """The verdicts, a line per layer."""
        found = []
        for _, row in self.frames["layers"].iterrows():
            words = f"{row['superposition']} {row['training']} {row['meaning']}"
            words = f"not diagnosed: {row['note']}" if row["note"] else words
            found.append(f"{row['layer']} ({row['units']} units): {words}")
        return found

    @property
    def figures(self) -> dict[str, go.Figure]:
        """The figures of the page, by layer and name."""
        from featalign.plots import dictionaries, polysemanticity

        found = {}
        for name in self.layers:
            units = self.frames["units"]
            units = units[(units["layer"] == name) & units["ranked"]]
            found[f"{name}/effective"] = polysemanticity.effective_features(units, name)
            features = self.frames["features"]
            rates = features.loc[features["layer"] == name, "firing_rate"].to_numpy(dtype=float)
            found[f"{name}/firing"] = dictionaries.density(rates, name)
            sweep = self.frames["sweep"]
            sweep = sweep[sweep["layer"] == name]
            if len(sweep):
                found[f"{name}/psi"] = polysemanticity.psi_curves(sweep, name)
                found[f"{name}/pareto"] = polysemanticity.pareto(sweep, name)
        return found

    def page(self) -> str:
        return self.neighbour("page").diagnosis_page(self)

    def write(self, folder: Path) -> None:
        super().write(folder)
        for name, basis in self.dictionaries.items():
            if isinstance(basis, Dictionary):
                basis.save(folder / "dictionaries" / storage.safe_name(name))

    @classmethod
    def read_config(cls, values: Mapping[str, Any], where: str) -> DiagnoseConfig:
        kind = DiagnoseRunConfig if "dataset" in values else DiagnoseConfig
        return options.read(kind, values, where)

    def _title(self) -> str:
        return f"diagnosis of {self.facts.get('title', 'a network')}, {len(self.layers)} hidden layer(s)"
