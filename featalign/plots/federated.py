"""Figures of federated rounds: curves over rounds, what travels, and where the clients' features go."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from featalign.plots.style import CATEGORIES, styled

STATES = {
    "shared": "in the aggregate, of two clients or more",
    "local": "in the aggregate, of one client",
    "lost": "not in the aggregate",
    "gone": "not in the client any more",
    "new": "not in the client before",
}


def curves(rounds: pd.DataFrame, column: str, title: str, label: str, scale: float = 1.0) -> go.Figure:
    """One line per run of a column of the rounds frame (`run`, `round`, ...), times `scale`."""
    figure = go.Figure()
    for place, (run, group) in enumerate(rounds.groupby("run", sort=False)):
        line = {"color": CATEGORIES[place % len(CATEGORIES)]}
        x, y = group["round"], scale * group[column]
        figure.add_scatter(x=x, y=y, name=str(run), mode="lines+markers", line=line, marker={"size": 5})
    figure.update_xaxes(tickformat="d", dtick=1 if rounds["round"].max() <= 10 else None)  # there is no half round
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


def feature_states(features: pd.DataFrame) -> go.Figure:
    """What became of the clients' features, per run at its last reading, of the features frame (all spaces)."""
    figure = go.Figure()
    clients = features[features["client"] != "server"]
    last = clients[clients["round"] == clients.groupby("run")["round"].transform("max")]
    sums = last.groupby("run", sort=False)[["alive", "shared", "local", "lost", "relearned"]].sum()
    for place, state in enumerate(("shared", "local", "lost", "relearned")):
        share = 100 * sums[state] / sums["alive"].clip(lower=1)
        runs = [str(run) for run in sums.index]
        figure.add_bar(x=runs, y=share.to_numpy(), name=state, marker={"color": CATEGORIES[place]})
    return styled(figure, "The clients' features at the last reading", "", "share of living features, %")


def feature_flow(flows: pd.DataFrame, title: str) -> go.Figure:
    """Sankey diagram over readings of the flows frame of one run (`round`, `before`, `after`, `count`), all spaces."""
    rounds = sorted(flows["round"].unique())
    colors = dict(zip(STATES, CATEGORIES))
    nodes: dict[tuple[int, str], int] = {}
    links: dict[str, list[float | str]] = {"source": [], "target": [], "value": [], "color": []}
    summed = flows.groupby(["round", "before", "after"], as_index=False)["count"].sum()
    for number, before, after, count in summed[["round", "before", "after", "count"]].itertuples(index=False):
        at = rounds.index(number)
        for key in ((at, before), (at + 1, after)):
            nodes.setdefault(key, len(nodes))
        links["source"].append(nodes[at, before])
        links["target"].append(nodes[at + 1, after])
        links["value"].append(int(count))
        links["color"].append("rgba(130,130,130,0.3)")
    places = list(nodes)
    figure = go.Figure(
        go.Sankey(
            node={
                "label": [state for _, state in places],
                "color": [colors[state] for _, state in places],
                "customdata": [STATES[state] for _, state in places],
                "hovertemplate": "%{customdata}: %{value}<extra></extra>",
                "x": [0.02 + 0.96 * at / max(len(rounds), 1) for at, _ in places],
                "y": [0.1 + 0.2 * list(STATES).index(state) for _, state in places],
            },
            link=links,
        )
    )
    return styled(figure, title, "", "")


def noise_cost(modes: pd.DataFrame) -> go.Figure:
    """What Gaussian noise on moments costs, of a frame with columns `mode`, `noise` and `late` (a fraction)."""
    figure = go.Figure()
    shared = modes[modes["start"] == "shared"]
    noisy = shared[shared["noise"] > 0]
    for place, (mode, group) in enumerate(noisy.groupby("mode", sort=False)):
        clean = float(shared.query("mode == @mode and noise == 0")["late"].iloc[0])
        color = CATEGORIES[place % len(CATEGORIES)]
        figure.add_scatter(
            x=group["noise"], y=100 * group["late"], name=str(mode), mode="lines+markers", line={"color": color}
        )
        figure.add_hline(y=100 * clean, line={"color": color, "dash": "dot"})
    figure.update_xaxes(type="log")
    title = "Accuracy under Gaussian noise on moments (dotted: without)"
    return styled(figure, title, "noise, in units of the mean diagonal", "accuracy, %")
