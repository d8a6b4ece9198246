"""Figures of federated rounds: curves over rounds, and what travels."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from featalign.plots.style import CATEGORIES, styled


def curves(rounds: pd.DataFrame, column: str, title: str, label: str, scale: float = 1.0) -> go.Figure:
    """One line per run of a column of the rounds frame (`run`, `round`, ...), times `scale`."""
    figure = go.Figure()
    for place, (run, group) in enumerate(rounds.groupby("run", sort=False)):
        line = {"color": CATEGORIES[place % len(CATEGORIES)]}
        x, y = group["round"], scale * group[column]
        figure.add_scatter(x=x, y=y, name=str(run), mode="lines+markers", line=line, marker={"size": 5})
    return styled(figure, title, "round", label)


def traffic(frame: pd.DataFrame) -> go.Figure:
    """Megabytes per run, by direction and kind, of the traffic frame (`run`, `direction`, `kind`, `bytes`)."""
    figure = go.Figure()
    for place, ((direction, kind), group) in enumerate(frame.groupby(["direction", "kind"], sort=False)):
        part = group.groupby("run", sort=False)["bytes"].sum() / 1e6
        color = CATEGORIES[place % len(CATEGORIES)]
        runs = [str(run) for run in part.index]
        figure.add_bar(x=runs, y=part.to_numpy(), name=f"{kind}, {direction}", marker={"color": color})
    figure.update_layout(barmode="stack")
    return styled(figure, "What travels", "", "megabytes, all rounds")
