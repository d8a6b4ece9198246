"""The page of a federate study."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from featalign.data.task import Metric
from featalign.federated import FAULTS, KINDS
from featalign.report import Section, page
from featalign.studies.federate.config import FederateConfig
from featalign.studies.result import config_dict

if TYPE_CHECKING:
    import plotly.graph_objects as go

FEW = 40  # rows of faults shown


def federate_page(
    config: FederateConfig,
    table: pd.DataFrame,
    frames: Mapping[str, pd.DataFrame],
    figures: Mapping[str, go.Figure],
    facts: Mapping[str, Any],
    metric: Metric,
) -> str:
    """The page as HTML text."""
    sections = [
        _scores(config, table, metric).figure(figures["value"]),
        Section("Clients").figure(figures["worst"]).figure(figures["drift"]),
        _traffic(frames["traffic"]).figure(figures["traffic"]),
        *_features(frames["features"], figures),
        _faults(frames["faults"]),
        *_laws(facts["laws"]),
        _provenance(config, facts),
    ]
    title = f"featalign federate: {config.dataset}, {config.split}, {config.clients} clients"
    return page(title, _lead(table, metric), sections)


def _lead(table: pd.DataFrame, metric: Metric) -> list[str]:
    order = table[metric.name].sort_values(ascending=not metric.higher_is_better)
    shown = ", ".join(f"{run} {metric.shown(value)}" for run, value in order.items())
    direction = "higher" if metric.higher_is_better else "lower"
    return [f"{metric.label} after the last round: {shown}.", f"{metric.name.capitalize()}: {direction} is better."]


def _scores(config: FederateConfig, table: pd.DataFrame, metric: Metric) -> Section:
    each = config.each
    rows = []
    for run, row in table.iterrows():
        settings = each[str(run)]
        refit = {False: "none", True: "public probe", "moments": "moments only"}[settings.refit]
        refit += ", readout from sums" * bool(settings.calibrate)
        how = f"{settings.select} x {settings.weigh} x {settings.fuse}"
        numbers = [metric.shown(row[name]) for name in (metric.name, "best", "worst tenth")]
        sizes = [f"{row['MB up']:.1f}", f"{row['MB down']:.1f}", int(row["faults"]), f"{row['seconds']:.1f}"]
        rows.append([run, how, refit, settings.algorithm, int(row["rounds"]), *numbers, *sizes])
    head = ["run", "select x weigh x fuse", "refit", "clients train", "rounds", metric.label, "best", "worst tenth"]
    return Section("Scores").table([*head, "MB up", "MB down", "faults", "seconds"], rows)


def _traffic(traffic: pd.DataFrame) -> Section:
    """What left the clients, by kind."""
    sums = traffic.groupby(["run", "direction", "kind"], sort=False)["bytes"].sum().reset_index()
    rows = [
        [row["run"], row["direction"], row["kind"], KINDS.get(row["kind"], ""), f"{row['bytes'] / 1e6:.3f}"]
        for _, row in sums.iterrows()
    ]
    section = Section("What travels").text("Inputs and labels are no kind: they leave no client.")
    return section.table(["run", "direction", "kind", "what it is", "MB"], rows)


def _features(features: pd.DataFrame, figures: Mapping[str, go.Figure]) -> list[Section]:
    """Which of the clients' features the aggregate holds, where they were read."""
    if features.empty:
        return []
    clients = features[features["client"] != "server"]
    rows = []
    for (run, number), group in clients.groupby(["run", "round"], sort=False):
        alive = max(int(group["alive"].sum()), 1)
        shares = [f"{100 * group[name].sum() / alive:.1f}" for name in ("shared", "local", "lost", "relearned", "new")]
        rows.append([run, number, alive, *shares, f"{100 * group['survival'].mean():.1f}"])
    head = [
        "run",
        "round",
        "living features",
        "shared",
        "local",
        "lost",
        "re-learned",
        "new",
        "of the first round kept",
    ]
    section = Section("Features over rounds").text(
        "Dictionaries of the clients' networks and of the aggregate, read on the public probe and carried from "
        "reading to reading. Shared: the aggregate holds the feature, and it is another client's too. Local: the "
        "aggregate holds it of this client alone. Lost: the aggregate does not hold it. Re-learned: lost at the last "
        "reading, and local training brought it back. All in percent of the clients' living features."
    )
    section = section.table(head, rows).figure(figures["survival"]).figure(figures["states"])
    for name, figure in figures.items():
        if name.startswith("flow "):
            section = section.figure(figure)
    return [section]


def _faults(faults: pd.DataFrame) -> Section:
    section = Section("Faults")
    if faults.empty:
        return section.text("Every report was taken as it came.")
    rows = [
        [
            row["run"],
            row["round"],
            row["client"],
            row["fault"],
            FAULTS.get(row["fault"], ""),
            row["action"],
            row["detail"],
        ]
        for _, row in faults.head(FEW).iterrows()
    ]
    head = ["run", "round", "client", "fault", "the client", "action", "detail"]
    found = section.text(f"{len(faults)} reports were dropped or clipped; their rounds went on.").table(head, rows)
    return found.text(f"The first {FEW} are shown.", note=True) if len(faults) > FEW else found


def _laws(laws: Mapping[str, Mapping[str, Any]]) -> list[Section]:
    """Feasibility of the laws of presence, where a run's weighing asks for it."""
    if not laws:
        return []
    rows = [[run, key.replace("_", " "), value] for run, facts in laws.items() for key, value in facts.items()]
    return [Section("Can those who show up deliver the importance?").table(["run", "", "value"], rows)]


def _provenance(config: FederateConfig, facts: Mapping[str, Any]) -> Section:
    options = [[name, value] for name, value in config_dict(config).items()]
    found = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    section = Section("How this page was made").text(found, note=True)
    for note in facts["notes"]:
        section.text(note, note=True)
    return section.table(["option", "value"], options)
