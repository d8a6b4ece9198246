"""The result of a federate study: the frames of all runs, in memory and as a run folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd

from featalign import storage
from featalign.data.task import Metric
from featalign.federated.result import (
    ROWS,
    ClientRow,
    FaultRow,
    FeatureRow,
    FederatedResult,
    FlowRow,
    RoundRow,
    TrafficRow,
)
from featalign.studies.federate.config import FederateConfig
from featalign.studies.result import StudyResult, study

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True)
class RunRound(RoundRow):
    """One round of one run.

    Attributes:
        run: its name.
    """

    run: str = ""


@dataclass(frozen=True)
class RunClient(ClientRow):
    """One client in one round of one run.

    Attributes:
        run: its name.
    """

    run: str = ""


@dataclass(frozen=True)
class RunTraffic(TrafficRow):
    """Bytes of one kind between the server and one client in one round of one run.

    Attributes:
        run: its name.
    """

    run: str = ""


@dataclass(frozen=True)
class RunFault(FaultRow):
    """A report of one run that was not taken as it came.

    Attributes:
        run: its name.
    """

    run: str = ""


@dataclass(frozen=True)
class RunFeature(FeatureRow):
    """Features of one network in one hidden space, in a round of one run in which they were read.

    Attributes:
        run: its name.
    """

    run: str = ""


@dataclass(frozen=True)
class RunFlow(FlowRow):
    """Where features of the clients of one run went between two readings.

    Attributes:
        run: its name.
    """

    run: str = ""


FRAMES: Mapping[str, type] = {
    "rounds": RunRound,
    "clients": RunClient,
    "traffic": RunTraffic,
    "faults": RunFault,
    "features": RunFeature,
    "flows": RunFlow,
}


@study("federate")
class FederateResult(StudyResult):
    """What `federate` returns: frames rounds, clients, traffic, faults, features and flows, with a column `run`."""

    rows: ClassVar[Mapping[str, type]] = FRAMES
    config_type: ClassVar[type] = FederateConfig

    @classmethod
    def gather(cls, config: FederateConfig, found: Mapping[str, FederatedResult], metric: Metric) -> FederateResult:
        """The runs of a study, by name."""
        frames: Any = {
            name: [{**asdict(row), "run": run} for run, result in found.items() for row in result.rows[name]]
            for name in ROWS
        }
        facts = {
            "metric": asdict(metric),
            "laws": {run: result.facts["law"] for run, result in found.items() if result.facts["law"]},
            "notes": sorted({note for result in found.values() for note in result.facts["notes"]}),
            "versions": storage.versions(),
        }
        return cls(config, frames, facts)

    @property
    def metric(self) -> Metric:
        """The headline metric of the task."""
        return Metric(**self.facts["metric"])

    def to_frame(self) -> pd.DataFrame:
        """One row per run: the metric after the last round, its best, the worst tenth of the clients, bytes, time."""
        rounds, better = self.frames["rounds"], self.metric.higher_is_better
        faults = self.frames["faults"].groupby("run").size()
        rows = {}
        for run, group in rounds.groupby("run", sort=False):
            last, survived = group.iloc[-1], group["survival"].dropna()
            rows[str(run)] = {
                "rounds": int(last["round"]),
                self.metric.name: last["value"],
                "best": group["value"].max() if better else group["value"].min(),
                "worst tenth": last["worst"],
                "drift": group["drift"].mean(),
                **({"feature survival": survived.iloc[-1]} if len(survived) else {}),
                "MB up": group["bytes_up"].sum() / 1e6,
                "MB down": group["bytes_down"].sum() / 1e6,
                "faults": int(faults.get(run, 0)),
                "seconds": group["seconds"].sum(),
            }
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("run")

    @property
    def figures(self) -> dict[str, go.Figure]:
        """Curves over rounds, the worst tenth, drift, traffic; of features, where they were read."""
        from featalign.plots.federated import curves, feature_flow, feature_states, traffic

        rounds, metric = self.frames["rounds"], self.metric
        features: dict[str, go.Figure] = {}
        if len(self.frames["features"]):
            read, title = (
                rounds.dropna(subset=["survival"]),
                "Features of the first round that the server's network holds",
            )
            features = {"survival": curves(read, "survival", title, "share of the clients' features, %", 100.0)}
            features["states"] = feature_states(self.frames["features"])
            for run, flows in self.frames["flows"].groupby("run", sort=False):
                features[f"flow {run}"] = feature_flow(flows, f"Where features go: {run}")
        return features | {
            "value": curves(rounds, "value", "The server's network over rounds", metric.label, metric.scale),
            "worst": curves(rounds, "worst", "The worst tenth of the clients", metric.label, metric.scale),
            "drift": curves(rounds, "drift", "How far clients move in a round", "norm of the update / of the weights"),
            "traffic": traffic(self.frames["traffic"]),
        }

    def page(self) -> str:
        """The page as HTML text."""
        from featalign.studies.federate.page import federate_page

        return federate_page(self.config, self.to_frame(), self.frames, self.figures, self.facts, self.metric)
