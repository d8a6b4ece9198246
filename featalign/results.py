"""The result of a comparison: table, curves and evidence over seeds, in memory and as a run folder."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from featalign import storage
from featalign.config import RunConfig

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from featalign.evidence import Trial

SCHEMA = 1


@dataclass
class CompareResult:
    """What `compare` and `run` return.

    Attributes:
        config: what was run.
        content: the plain numbers of results.json (its schema is in docs/results.md).
        trials: the repetitions with their modules, dictionaries and evidence.
        folder, saes: where it was written, if it was.
    """

    config: RunConfig
    content: dict[str, Any]
    trials: list[Trial]
    folder: Path | None = None
    saes: Path | None = None

    @classmethod
    def gather(cls, config: RunConfig, trials: Sequence[Trial]) -> CompareResult:
        """Put the repetitions together: means, standard deviations, gaps to the best client and to the ensemble."""
        names = list(trials[0].scores)
        accuracy = {name: [trial.scores[name]["accuracy"] for trial in trials] for name in names}
        clients = np.array([accuracy[name] for name in names if name.startswith("client-")])
        best, ensemble = clients.max(axis=0), np.array(accuracy["ensemble-softmax"])
        methods = {
            name: {
                "accuracy": statistics(values),
                "seconds": statistics([trial.scores[name]["seconds"] for trial in trials]),
                "gap_to_best_client": statistics(np.array(values) - best),
                "gap_to_ensemble": statistics(np.array(values) - ensemble),
                **_facts(name, trials[0]),
            }
            for name, values in accuracy.items()
        }
        curves = {
            name: {
                "mixing": curve["mixing"],
                "accuracy": [statistics(column) for column in zip(*(t.curves[name]["accuracy"] for t in trials))],
            }
            for name, curve in trials[0].curves.items()
        }
        content = {
            "schema": SCHEMA,
            "config": config.to_dict(),
            "versions": versions(),
            "clients": [[_client(member) for member in trial.members] for trial in trials],
            "partition": [trial.partition for trial in trials],
            "methods": methods,
            "curves": curves,
            "spaces": {
                name: {"seeds": [trial.spaces[name].to_dict() for trial in trials]} for name in trials[0].spaces
            },
            "dictionaries": _dictionaries(trials),
        }
        return cls(config, storage.plain(content), list(trials))

    def to_dict(self) -> dict[str, Any]:
        """The content of results.json."""
        return self.content

    def to_frame(self) -> pd.DataFrame:
        """One row per method, accuracies as fractions, in order of accuracy within each kind."""
        rows = [
            {
                "method": name,
                "kind": entry["kind"],
                "accuracy": entry["accuracy"]["mean"],
                "std": entry["accuracy"]["std"],
                "gap_to_best_client": entry["gap_to_best_client"]["mean"],
                "gap_to_ensemble": entry["gap_to_ensemble"]["mean"],
                "seconds": entry["seconds"]["mean"],
            }
            for name, entry in self.content["methods"].items()
        ]
        frame = pd.DataFrame(rows).set_index("method")
        order = {"client": 0, "ensemble": 1, "one-shot": 2, "one-shot + refit": 3}
        frame["order"] = [order[kind] for kind in frame["kind"]]
        return frame.sort_values(["order", "accuracy"], ascending=[True, False]).drop(columns="order")

    def modules(self, seed: int = 0) -> dict[str, Any]:
        """Fused networks of one repetition by row name."""
        return {name: result.module for name, result in self.trials[seed].results.items()}

    @property
    def figures(self) -> dict[str, go.Figure]:
        """The figures of the report page, by name."""
        from featalign.plots.compare import figures

        return figures(self.content, self.matrices())

    def matrices(self) -> dict[str, np.ndarray]:
        """Sorted correlation matrices and matched scores of the first repetition, the arrays behind the heatmaps."""
        arrays: dict[str, np.ndarray] = {}
        for name, evidence in self.trials[0].spaces.items():
            for basis, match in (("neuron", evidence.neuron), ("feature", evidence.feature)):
                arrays |= {f"{name}/{basis}/{key}": value for key, value in _sorted_match(match).items()}
        return arrays

    def save(self, folder: Path, saes: Path) -> None:
        """Write config.toml, results.json, evidence, fused models and dictionaries."""
        import torch

        from featalign.plots.sprites import sprite_sheet

        storage.write_bytes(folder / "config.toml", self.config.to_toml().encode())
        storage.write_json(folder / "results.json", self.content)
        matrices = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in self.matrices().items()}
        storage.save_tensors(folder / "matrices.safetensors", matrices)
        first = self.trials[0]
        browser = {name: evidence.browser for name, evidence in first.spaces.items()}
        used = sorted({i for entry in browser.values() for latent in _latents(entry) for i in latent["inputs"]})
        storage.write_json(
            folder / "browser.json",
            {
                "spaces": browser,
                "inputs": {str(i): {"place": place, "label": int(first.labels[i])} for place, i in enumerate(used)},
                "sheet": sprite_sheet(first.inputs[used].numpy()),
                "classes": first.class_names,
                "names": [first.names[0], first.names[-1]],
            },
        )
        for trial in self.trials:
            for name, result in trial.results.items():
                result.save(folder / "models" / f"seed-{trial.seed}" / f"{storage.safe_name(name)}.safetensors")
            for space, members in trial.dictionaries.items():
                for name, dictionary in zip(trial.names, members):
                    below = saes if trial.seed == first.seed else saes / f"seed-{trial.seed}"
                    dictionary.save(below / storage.safe_name(name) / storage.safe_name(space))

    def _in_per_cent(self) -> pd.DataFrame:
        frame = self.to_frame()
        shares = {column: 100 * frame[column] for column in frame.columns if column not in {"kind", "seconds"}}
        return frame.assign(**shares).round(2)

    def __repr__(self) -> str:
        return f"accuracy in per cent, {len(self.trials)} seed(s)\n{self._in_per_cent().to_string()}"

    def _repr_html_(self) -> str:
        return f"<p>accuracy in per cent, {len(self.trials)} seed(s)</p>{self._in_per_cent().to_html()}"


def statistics(values: Any) -> dict[str, Any]:
    """Mean, standard deviation over seeds (n - 1; 0 for one seed) and the values themselves."""
    values = np.asarray(values, dtype=float)
    return {
        "mean": float(values.mean()),
        "std": float(values.std(ddof=1)) if len(values) > 1 else 0.0,
        "values": values.tolist(),
    }


def versions() -> dict[str, str]:
    """Versions of what decides the numbers."""
    found = {"python": platform.python_version()}
    for package in ("featalign", "torch", "numpy", "scipy", "POT", "scikit-learn"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "unknown"
    return found


def _facts(name: str, trial: Trial) -> dict[str, Any]:
    from featalign.fuse.methods import METHODS

    if name.startswith("client-"):
        return {"kind": "client", "basis": "none", "summary": "one client alone"}
    if name.startswith("ensemble-"):
        return {"kind": "ensemble", "basis": "none", "summary": "all clients kept, outputs averaged"}
    result = trial.results[name]
    method = METHODS[result.method]
    kind = "one-shot + refit" if result.refitted else "one-shot"
    return {"kind": kind, "basis": method.basis, "summary": method.summary, "detail": result.to_dict()}


def _client(member: Any) -> dict[str, Any]:
    return {key: value for key, value in member.to_dict().items() if key != "losses"}


def _dictionaries(trials: Sequence[Trial]) -> dict[str, Any]:
    """`{client: {space: {explained_variance, l0, dead_fraction, ...: statistics over seeds}}}`."""
    found: dict[str, Any] = {}
    for space in trials[0].dictionaries:
        for k, name in enumerate(trials[0].names):
            members = [trial.dictionaries[space][k] for trial in trials]
            facts = members[0].to_dict()
            entry = {key: facts[key] for key in ("architecture", "units", "width", "k")}
            for key in ("explained_variance", "l0", "dead_fraction"):
                entry[key] = statistics([getattr(member.quality, key) for member in members])
            found.setdefault(name, {})[space] = entry
    return found


def _sorted_match(match: Any, limit: int = 256) -> dict[str, np.ndarray]:
    """Correlations with matched pairs first, best on top, at most `limit` rows; scores and the null's best."""
    order = np.argsort(-match.scores)
    rows, columns = match.pairs[order, 0], match.pairs[order, 1]
    energy_a, energy_b = match.energy
    free_rows = np.setdiff1d(np.flatnonzero(energy_a > 0), rows)
    free_columns = np.setdiff1d(np.flatnonzero(energy_b > 0), columns)
    rows = np.concatenate([rows, free_rows[np.argsort(-energy_a[free_rows])]])[:limit]
    columns = np.concatenate([columns, free_columns[np.argsort(-energy_b[free_columns])]])[:limit]
    return {
        "correlation": match.correlation[np.ix_(rows, columns)].astype(np.float32),
        "matched": np.sort(match.scores)[::-1].astype(np.float32),
        "null": match.null_best.astype(np.float32),
        "best": match.correlation[energy_a > 0].max(axis=1).astype(np.float32),
        "threshold": np.array([1 - match.threshold], dtype=np.float32),
    }


def _latents(entry: dict[str, Any]) -> list[dict[str, Any]]:
    paired = [pair[side] for pair in entry["pairs"] for side in ("a", "b")]
    return [*paired, *entry["unmatched"][0], *entry["unmatched"][1]]
