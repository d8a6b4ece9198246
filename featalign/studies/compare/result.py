"""The result of a comparison: frames over seeds, in memory and as a run folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd

from featalign import options, storage
from featalign.data.task import Metric
from featalign.studies.compare.config import CompareConfig, RunConfig
from featalign.studies.compare.rows import FRAMES, MethodRow, Row
from featalign.studies.result import StudyResult, records, statistics, study

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from torch import nn

    from featalign.studies.compare.trial import Trial

KINDS = ("client", "ensemble", "one-shot", "one-shot + refit")
FUSED = KINDS[2:]


@study("compare")
class CompareResult(StudyResult):
    """What `compare` and `run` return.

    Attributes:
        trials: the repetitions with their networks and dictionaries; empty for a result that was loaded.
        saes: where the dictionaries were written, if they were.
    """

    rows: ClassVar[Mapping[str, type]] = FRAMES
    config_type: ClassVar[type] = RunConfig

    trials: list[Trial] = field(default_factory=list)
    saes: Path | None = None

    @classmethod
    def gather(
        cls, config: CompareConfig, trials: Sequence[Trial], clients: Sequence[Any], facts: Mapping[str, Any]
    ) -> CompareResult:
        """Put the repetitions together."""
        first = trials[0]
        frames: dict[str, Any] = {
            name: [row for trial in trials for row in trial.records.get(name, ())] for name in FRAMES
        }
        frames |= {"rows": _rows(trials), "methods": _methods(trials), "clients": list(clients)}
        task = first.cohort.task
        notes = [note for trial in trials for note in _notes(trial, len(trials))]
        known = {
            "versions": storage.versions(),
            "task": task.name,
            "metrics": [asdict(metric) for metric in task.metrics],
            "mixing": first.problem.mixing[0],
            "reference": first.cohort.names[-1],
            "scored": first.scored is not None,
            "notes": list(dict.fromkeys(notes)),
        }
        browser = {"browser": first.browser} if first.browser else {}
        return cls(config, frames, {**known, **facts}, first.arrays, browser, trials=list(trials))

    @property
    def own(self) -> bool:
        """Whether the networks came from the caller, not from a shipped data set."""
        return not isinstance(self.config, RunConfig)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The task's metrics, the headline first."""
        return tuple(Metric(**metric) for metric in self.facts["metrics"])

    @property
    def metric(self) -> Metric:
        """The headline metric."""
        return self.metrics[0]

    @property
    def seeds(self) -> list[int]:
        """The repetitions."""
        found = set(self.frames["scores"]["seed"]) | set(self.frames["clients"]["seed"])
        return sorted(int(seed) for seed in found)

    def headline(self, metric: str | None = None) -> pd.DataFrame:
        """Scores at the headline's mixing weight with the gain over the best client and the ensemble of each seed."""
        name = metric or self.metric.name
        chosen = next(each for each in self.metrics if each.name == name)
        scores = self.frames["scores"]
        scores = scores[(scores["metric"] == name) & ((scores["mixing"] - self.facts["mixing"]).abs() < 1e-9)]
        scores = scores.merge(self.frames["rows"][["row", "kind"]], on="row", how="left")
        best = scores[scores["kind"] == "client"].groupby("seed")["value"]
        best = best.max() if chosen.higher_is_better else best.min()
        ensemble = scores[scores["row"] == "ensemble"].set_index("seed")["value"]
        gains = {
            column: [
                chosen.gain(value, float(reference.get(seed, float("nan"))))
                for seed, value in zip(scores["seed"], scores["value"])
            ]
            for column, reference in (("to_best_client", best), ("to_ensemble", ensemble))
        }
        return scores.assign(**gains)

    def to_frame(self, metric: str | None = None) -> pd.DataFrame:
        """One row per network, best first within each kind: mean and standard deviation over seeds of a metric.

        Gains are positive where a network is better. `metric` is one of the task's; the headline by default.
        """
        name = metric or self.metric.name
        chosen = next(each for each in self.metrics if each.name == name)
        scores = self.headline(name)
        found = []
        for row in records(self.frames["rows"]):
            own = scores[scores["row"] == row.row]
            mean, std, count = statistics(own["value"])
            gains = [statistics(own[column])[0] for column in ("to_best_client", "to_ensemble")]
            found.append((row.row, row.kind, row.method, row.basis, mean, std, count, *gains, row.seconds))
        columns = ["row", "kind", "method", "basis", name, "std", "seeds", "to_best_client", "to_ensemble", "seconds"]
        frame = pd.DataFrame(found, columns=columns)
        frame["order"] = [KINDS.index(kind) for kind in frame["kind"]]
        frame["rank"] = -frame[name] if chosen.higher_is_better else frame[name]
        frame = frame.sort_values(["order", "rank"], kind="stable", na_position="last")
        return frame.drop(columns=["order", "rank"]).set_index("row")

    def mean(self, row: str) -> float:
        """The headline metric of a row, mean over seeds."""
        return statistics(self.headline().query("row == @row")["value"])[0]

    def best(self, *kinds: str, basis: str | None = None) -> str | None:
        """The best row among kinds (and one basis); None where nothing was scored."""
        frame = self.to_frame()
        frame = frame[frame["kind"].isin(kinds) & frame[self.metric.name].notna()]
        frame = frame if basis is None else frame[frame["basis"] == basis]
        if frame.empty:
            return None
        values = frame[self.metric.name]
        return str(values.idxmax() if self.metric.higher_is_better else values.idxmin())

    def modules(self, seed: int = 0) -> dict[str, nn.Module]:
        """Fused networks of one repetition by row, in the layout that the clients came in."""
        return self.trials[seed].modules

    @property
    def figures(self) -> dict[str, go.Figure]:
        """The figures of the page, by name."""
        return self.neighbour("figures").figures(self)

    def page(self) -> str:
        from featalign.report.page import drawing

        if self.trials:
            return self.neighbour("page").compare_page(self)
        with drawing(self.folder or "this result"):
            return self.neighbour("page").compare_page(self)

    def save(self, folder: Path | str, overwrite: bool = False, saes: Path | str | None = None) -> Path:
        """Write the run folder, page, fused networks and dictionaries included; `saes` puts the latter elsewhere."""
        with ExitStack() as stack:
            temporary = stack.enter_context(storage.atomic_folder(folder, overwrite, kind=self.kind))
            apart = temporary / "saes"
            if saes is not None:
                apart = stack.enter_context(storage.atomic_folder(saes, overwrite, kind="dictionaries"))
            self.write(temporary)
            self._write_dictionaries(apart)
        self.folder, self.saes = Path(folder), Path(saes) if saes is not None else Path(folder) / "saes"
        return self.folder

    def write(self, folder: Path) -> None:
        super().write(folder)
        for trial in self.trials:
            for row, module in trial.modules.items():
                path = folder / "models" / f"seed-{trial.seed}" / f"{storage.safe_name(row)}.safetensors"
                storage.save_tensors(path, _tensors(module))

    def _write_dictionaries(self, folder: Path) -> None:
        for place, trial in enumerate(self.trials):
            below = folder if place == 0 else folder / f"seed-{trial.seed}"
            for space, members in trial.trained.get("dictionaries", {}).items():
                for k, dictionary in members.items():
                    name = storage.safe_name(trial.cohort.names[k])
                    dictionary.save(below / name / storage.safe_name(space))

    @classmethod
    def read_config(cls, values: Mapping[str, Any], where: str) -> CompareConfig:
        kind = RunConfig if "dataset" in values else CompareConfig
        return options.read(kind, values, where)

    def _title(self) -> str:
        unit = f" in {self.metric.unit}" if self.metric.unit else ""
        return f"{self.metric.name}{unit}, {len(self.seeds)} seed(s)"

    def shown(self) -> pd.DataFrame:
        """The headline table in the metric's unit."""
        frame, scale = self.to_frame(), self.metric.scale
        columns = [self.metric.name, "std", "to_best_client", "to_ensemble"]
        return frame.assign(**{name: scale * frame[name] for name in columns}).drop(columns=["method"])

    def __repr__(self) -> str:
        return f"{self._title()}\n{self.shown().round(4 if self.metric.scale == 1 else 2).to_string()}"

    def _repr_html_(self) -> str:
        from html import escape

        table = self.shown().round(4 if self.metric.scale == 1 else 2).to_html()
        return f"<p>{escape(self._title())}</p>{table}"


def _rows(trials: Sequence[Trial]) -> list[Row]:
    """The table's rows in order of appearance, seconds averaged over seeds."""
    from featalign.fuse import METHODS

    found: dict[str, Row] = {}
    seconds: dict[str, list[float]] = {}
    for trial in trials:
        for name in trial.cohort.names:
            row = f"client-{name}"
            found[row] = Row(row, "client", "", "none", "one client alone", 0.0)
        if len(trial.cohort) > 1:
            for head in (None, *trial.cohort.task.head_targets[1:]):
                row = "ensemble" if head is None else f"ensemble-{head}"
                how = "as the task does" if head is None else f"by {head}"
                summary = f"all clients kept, outputs combined {how}"
                found[row] = Row(row, "ensemble", "", "none", summary, 0.0)
        for row, result in trial.results.items():
            method = METHODS[result.method]
            kind = FUSED[1] if result.refitted else FUSED[0]
            found[row] = Row(row, kind, result.method, method.basis, method.summary, 0.0)
            seconds.setdefault(row, []).append(result.seconds)
    return [replace(row, seconds=statistics(seconds.get(name, [0.0]))[0]) for name, row in found.items()]


def _methods(trials: Sequence[Trial]) -> list[MethodRow]:
    from featalign.fuse import METHODS

    found = []
    for name in METHODS.names():
        method = METHODS[name]
        reasons = {trial.seed: trial.reasons[name] for trial in trials if name in trial.reasons}
        text = "; ".join(dict.fromkeys(reasons.values()))
        if reasons and len(reasons) < len(trials):
            text = f"seed {', '.join(map(str, reasons))}: {text}"
        found.append(MethodRow(name, method.basis, method.summary, not reasons, text))
    return found


def _notes(trial: Trial, seeds: int) -> list[str]:
    return [f"seed {trial.seed}: {note}" if seeds > 1 and "client" in note else note for note in trial.notes]


def _tensors(module: nn.Module) -> dict[str, Any]:
    return dict(module.state_dict())
