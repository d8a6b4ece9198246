"""Figures of a comparison: scores with seeds, mixing-weight curves, plans side by side, matched correlations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from featalign.plots.style import ACCENT, FEATURE, NEURON, NULL, REFERENCE, heatmap, label, styled

BASIS_COLOURS = {"none": NULL, "neuron": NEURON, "feature": FEATURE, "pool": ACCENT}
BASIS_NAMES = {"none": "no alignment", "neuron": "neuron basis", "feature": "feature basis", "pool": "unit pool"}
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "cross", "star", "hexagon", "pentagon", "triangle-down")
PARENTS = ("client", "ensemble")


def scores(frame: pd.DataFrame, rows: pd.DataFrame, axis: str, scale: float = 1.0, higher: bool = True) -> go.Figure:
    """Every row with one point per seed, coloured by basis, best at the top.

    Args:
        frame: columns row, seed, value.
        rows: columns row, kind, basis.
        axis: name and unit of the metric; scale: from stored to shown values; higher: whether more is better.
    """
    facts = {row.row: row for row in _records(rows)}
    order = frame.groupby("row", sort=False)["value"].mean().sort_values(ascending=higher).index
    figure = go.Figure()
    for name in order:
        colour = REFERENCE if facts[name].kind in PARENTS else BASIS_COLOURS.get(facts[name].basis, NULL)
        own = frame[frame["row"] == name]
        values = (scale * own["value"]).tolist()
        figure.add_bar(
            y=[label(name)], x=[float(np.mean(values))], orientation="h", marker_color=colour, opacity=0.35,
            hovertemplate="%{y}: %{x:.4g}<extra></extra>", showlegend=False,
        )  # fmt: skip
        figure.add_scatter(
            y=[label(name)] * len(values), x=values, mode="markers", marker={"color": colour, "size": 8},
            hovertemplate="seed %{customdata}: %{x:.4g}<extra></extra>", customdata=own["seed"].tolist(),
            showlegend=False,
        )  # fmt: skip
    shown = [(REFERENCE, "clients and ensembles")]
    shown += [(BASIS_COLOURS[b], BASIS_NAMES[b]) for b in BASIS_NAMES if b in set(rows["basis"])]
    for colour, meaning in shown:
        figure.add_scatter(x=[None], y=[None], mode="markers", marker={"color": colour, "size": 10}, name=meaning)
    direction = "" if higher else " (lower is better)"
    title = f"{axis.partition(',')[0].capitalize()} on evaluation data, a point per seed{direction}"
    styled(figure, title, axis, "", height=160 + 24 * len(order))
    figure.update_yaxes(automargin=True)
    return figure.update_layout(barmode="overlay", legend={"orientation": "h", "y": -0.14})


def mixing_curves(
    frame: pd.DataFrame, rows: pd.DataFrame, axis: str, scale: float = 1.0, lines: Mapping[str, float] | None = None
) -> go.Figure:
    """A metric along the mixing weight: dotted before the refit, solid after, with parents as horizontal lines.

    Args:
        frame: columns row, mixing, mean, std, count, over seeds.
        rows: columns row, kind, method, basis.
        lines: values of parents by their name.
    """
    methods, far = list(dict.fromkeys(rows["method"])), _outliers(frame)
    figure = go.Figure()
    for row in _records(rows):
        own = frame[frame["row"] == row.row].sort_values("mixing")
        if len(own) < 2:
            continue
        spread = (scale * own["std"]).tolist() if own["count"].max() > 1 else None
        figure.add_scatter(
            x=own["mixing"].tolist(), y=(scale * own["mean"]).tolist(), name=label(row.row), mode="lines+markers",
            error_y={"array": spread, "thickness": 1, "width": 2} if spread else None,
            line={"color": BASIS_COLOURS.get(row.basis, NULL), "dash": "solid" if "refit" in row.kind else "dot"},
            marker={"symbol": SYMBOLS[methods.index(row.method) % len(SYMBOLS)], "size": 7},
            visible="legendonly" if row.row in far else True,
        )  # fmt: skip
    for name, value in (lines or {}).items():
        line = {"color": REFERENCE, "dash": "dash", "width": 1}
        figure.add_hline(y=scale * value, line=line, annotation_text=label(name))
    title = "Along the mixing weight (dotted: fused, solid: fused and refitted)"
    styled(figure, title, "weight of the first client", axis, height=560)
    return figure.update_layout(legend={"orientation": "h", "y": -0.16})


def _records(frame: pd.DataFrame) -> list[Any]:
    """The rows of a frame, each with its columns as attributes."""
    return list(frame.itertuples(index=False))


def _outliers(frame: pd.DataFrame) -> set[str]:
    """Rows whose curve lies so far from the others that it would flatten them; a click in the legend shows them."""
    middle = frame.groupby("row")["mean"].median()
    gap = (middle - middle.median()).abs()
    return set(gap.index[gap > 8 * max(float(gap.median()), 1e-12)])


def plans(arrays: Mapping[str, np.ndarray], space: str, bases: Sequence[str]) -> go.Figure:
    """Correlations sorted by the plan, one panel per basis: a bright diagonal is agreement.

    `arrays` holds `<space>/<basis>/<key>` with keys correlation, matched, best.
    """
    titles = [_count(arrays, space, basis) for basis in bases]
    figure = make_subplots(cols=len(bases), rows=1, horizontal_spacing=0.12, subplot_titles=titles)
    for column, basis in enumerate(bases, start=1):
        matrix = arrays[f"{space}/{basis}/correlation"]
        bar = {"tickvals": [0, 127.5, 255], "ticktext": ["0", "0.5", "1"], "thickness": 10, "title": "corr"}
        trace = heatmap(matrix, 0.0, 1.0, colorbar=bar, showscale=column == len(bases))
        figure.add_trace(trace, row=1, col=column)
        what = "units" if basis == "neuron" else "latents"
        figure.update_yaxes(autorange="reversed", title_text=f"{what} of the first client", row=1, col=column)
        figure.update_xaxes(title_text=f"{what} of the reference", row=1, col=column)
    styled(figure, f"{label(space)}: who matches whom (matched pairs first, best on top)", height=480)
    figure.update_annotations(font_size=12)
    return figure.update_layout(margin={"t": 100})


def _count(arrays: Mapping[str, np.ndarray], space: str, basis: str) -> str:
    matched, rows = len(arrays[f"{space}/{basis}/matched"]), len(arrays[f"{space}/{basis}/best"])
    mean = float(arrays[f"{space}/{basis}/matched"].mean()) if matched else 0.0
    what = "units" if basis == "neuron" else "latents"
    return f"{basis} basis: {matched} of {rows} {what}<br>matched, mean correlation {mean:.2f}"


def correlations(arrays: Mapping[str, np.ndarray], space: str, bases: Sequence[str]) -> go.Figure:
    """Histograms of matched correlations in each basis, with the null's best and the threshold taken from it."""
    colours = {"neuron": NEURON, "feature": FEATURE}
    titles = [f"{basis} basis" for basis in bases]
    figure = make_subplots(
        rows=1, cols=len(bases), shared_yaxes=True, horizontal_spacing=0.06, subplot_titles=titles
    )  # fmt: skip
    for column, basis in enumerate(bases, start=1):
        for key, name, shade in (
            ("null", "best under the null", NULL),
            ("matched", f"matched {basis}s", colours[basis]),
        ):
            values = arrays[f"{space}/{basis}/{key}"]
            counts, edges = np.histogram(values, bins=40, range=(0, 1))
            figure.add_bar(
                x=((edges[1:] + edges[:-1]) / 2).round(4), y=(counts / max(len(values), 1)).round(5), width=1 / 40,
                marker_color=shade, opacity=0.65, name=name, row=1, col=column,
                showlegend=column == 1 or key != "null",
            )  # fmt: skip
        threshold = float(arrays[f"{space}/{basis}/threshold"][0])
        figure.add_vline(
            x=threshold, line={"color": REFERENCE, "dash": "dot"}, annotation_text="null threshold",
            annotation_position="top right", row=1, col=column,
        )  # fmt: skip
        figure.update_xaxes(title_text="correlation over the probe", range=[0, 1.02], row=1, col=column)
    figure.update_yaxes(title_text="share", row=1, col=1)
    styled(figure, f"{label(space)}: matched correlations against the null", height=370)
    return figure.update_layout(barmode="overlay", bargap=0, margin={"t": 92}, legend={"orientation": "h", "y": -0.22})


def polysemanticity(units: pd.DataFrame) -> go.Figure:
    """Effective features per unit, and class selectivity beside shuffled labels, where there are classes.

    `units` has columns space, client, measure, low, median, high.
    """
    keys = (
        ("effective_features", "features per unit", FEATURE, 1),
        ("unit_selectivity", "units", NEURON, 2),
        ("latent_selectivity", "latents", FEATURE, 2),
        ("unit_selectivity_null", "units, labels shuffled", NULL, 2),
        ("latent_selectivity_null", "latents, labels shuffled", REFERENCE, 2),
    )
    classes = units["measure"].str.contains("selectivity").any()
    titles = ["effective number of features per unit", "class selectivity"][: 1 + bool(classes)]
    figure = make_subplots(rows=1, cols=len(titles), horizontal_spacing=0.12, subplot_titles=titles)
    for key, name, colour, column in keys:
        own = units[units["measure"] == key]
        if own.empty:
            continue
        figure.add_scatter(
            x=[f"{label(row.space)}, {label(row.client)}" for row in _records(own)], y=own["median"].tolist(),
            name=name, mode="markers", marker={"color": colour, "size": 10},
            error_y={
                "type": "data", "symmetric": False, "thickness": 1.5,
                "array": (own["high"] - own["median"]).tolist(),
                "arrayminus": (own["median"] - own["low"]).tolist(),
            },
            row=1, col=column,
        )  # fmt: skip
    figure.update_yaxes(rangemode="tozero")
    styled(figure, "Polysemanticity by space and client (median and quartiles)", height=420)
    return figure.update_layout(margin={"t": 92}, legend={"orientation": "h", "y": -0.28})
