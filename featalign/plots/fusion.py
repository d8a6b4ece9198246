"""Figures of fused networks: methods side by side on several pairs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from featalign.plots.style import ACCENT, CATEGORIES, FEATURE, NEURON, NULL, REFERENCE, styled

if TYPE_CHECKING:
    import pandas as pd

STAGES = (("fused", "fused", NEURON), ("refit", "fused and refitted", ACCENT))

FATES = {"kept": NEURON, "merged": FEATURE, "absorbed": ACCENT, "split": CATEGORIES[-1], "lost": NULL}


def methods_table(frame: pd.DataFrame) -> go.Figure:
    """A panel per pair of networks: every method before and after the refit, clients and ensemble as lines.

    `frame`: pair, method, stage, metric, value, std (over seeds, NaN for one).
    """
    pairs = list(dict.fromkeys(frame["pair"]))
    methods = [name for name in dict.fromkeys(frame["method"]) if name]
    figure = make_subplots(rows=1, cols=len(pairs), subplot_titles=pairs, shared_yaxes=True)
    for column, pair in enumerate(pairs, start=1):
        own = frame[frame["pair"] == pair]
        for stage, name, colour in STAGES:
            found = own[own["stage"] == stage].set_index("method").reindex(methods)
            figure.add_bar(
                y=methods, x=found["value"], error_x={"type": "data", "array": found["std"].fillna(0)}, name=name,
                orientation="h", marker={"color": colour}, showlegend=column == 1, row=1, col=column,
            )  # fmt: skip
        for stage, colour in (("client", NULL), ("ensemble", REFERENCE)):
            for value in own[own["stage"] == stage]["value"]:
                figure.add_vline(x=value, line={"color": colour, "dash": "dot"}, row=1, col=column)
        figure.update_xaxes(title_text=str(own["metric"].iloc[0]), row=1, col=column)
    figure.update_layout(barmode="group")
    return styled(
        figure, "Fused networks by method (lines: clients and their ensemble)", "", "", 200 + 26 * len(methods)
    )


def fates(frame: pd.DataFrame) -> go.Figure:
    """Share of each client's features by what became of them, a stacked bar per fused network and client.

    `frame`: seed, space, row, client and a count per fate; counts are summed over spaces and seeds.
    """
    counts = frame.groupby(["row", "client"], sort=False)[list(FATES)].sum()
    shares = counts.div(counts.sum(axis=1).clip(lower=1), axis=0)
    labels = [[row for row, _ in shares.index], [client for _, client in shares.index]]
    figure = go.Figure()
    for name, colour in FATES.items():
        figure.add_bar(y=labels, x=shares[name], name=name, orientation="h", marker={"color": colour})
    figure.update_layout(barmode="stack")
    figure.update_yaxes(autorange="reversed")
    title = "What became of the clients' features"
    return styled(figure, title, "share of the features that fire", "", 180 + 24 * len(shares))


def frontier(frame: pd.DataFrame) -> go.Figure:
    """Accuracy against mean class selectivity of units, a line per fused width along the pools from neurons to latents.

    `frame`: network, pool (neurons, latents or both), k, width, metric, value, selectivity, null, and `_std` of value
    and selectivity over seeds (NaN for one). Pools of latents come from dense to sparse, so that a line runs from what
    neurons are to what the sparsest features are. Clients, ensemble and average are points with a name; open circles
    are what shuffled labels give, which is much for units that few of the inputs drive.
    """
    figure = go.Figure()
    fused = frame[frame["network"] == "fused"]
    for place, (width, own) in enumerate(fused.groupby("width", sort=True)):
        for pool, symbol, dash in (("latents", "circle", "solid"), ("both", "diamond", "dot")):
            rows = own[own["pool"].isin(["neurons", pool])].sort_values("selectivity")
            if not (rows["pool"] == pool).any():  # too few units for this width
                continue
            meant = "neurons, then latents" if pool == "latents" else "both in one pool"
            figure.add_scatter(
                x=rows["selectivity"], y=rows["value"], name=f"{width:g}x: {meant}", mode="lines+markers",
                text=[name if name == "neurons" else f"{name}, k = {k:g}" for name, k in zip(rows["pool"], rows["k"])],
                line={"color": CATEGORIES[place % len(CATEGORIES)], "dash": dash},
                marker={"symbol": ["square" if name == "neurons" else symbol for name in rows["pool"]], "size": 9},
                error_x=_spread(rows, "selectivity"), error_y=_spread(rows, "value"),
                hovertemplate="%{text}: %{y:.3f} at %{x:.2f}<extra></extra>",
            )  # fmt: skip
    for network, symbol in (("client", "x"), ("ensemble", "star"), ("average", "cross")):
        rows = frame[frame["network"] == network]
        figure.add_scatter(
            x=rows["selectivity"], y=rows["value"], mode="markers+text", text=[network] * len(rows), showlegend=False,
            textposition="top center", marker={"color": REFERENCE, "symbol": symbol, "size": 11},
            error_x=_spread(rows, "selectivity"), error_y=_spread(rows, "value"),
        )  # fmt: skip
    figure.add_scatter(
        x=frame["null"], y=frame["value"], name="shuffled labels", mode="markers",
        marker={"color": NULL, "symbol": "circle-open", "size": 7},
    )  # fmt: skip
    title = "Accuracy against class selectivity of fused units, by fused width"
    return styled(figure, title, "mean class selectivity of hidden units", str(frame["metric"].iloc[0]), 520)


def _spread(rows: pd.DataFrame, column: str) -> dict[str, Any]:
    return {"type": "data", "array": rows[f"{column}_std"].fillna(0), "thickness": 1, "width": 3}
