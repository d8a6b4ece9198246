"""Figures of toy models: polygons, Gram matrices, phases, methods against the truth, curves and the outcome map."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from featalign.plots.style import (
    ACCENT,
    CATEGORIES,
    DIVERGING,
    FEATURE,
    NEURON,
    NULL,
    REFERENCE,
    heatmap,
    label,
    styled,
)

OUTCOMES = {"wins": FEATURE, "ties": NULL, "loses": NEURON}
PHASE_COLOURS = [[0, "#f1f3f5"], [0.5, ACCENT], [1, FEATURE]]
BASES = {"none": NULL, "neuron": NEURON, "feature": FEATURE, "pool": ACCENT}
LINES = {
    "vanilla": NULL,
    "ot-acts": NEURON,
    "procrustes": ACCENT,
    "procrustes-wts": CATEGORIES[3],
    "feature-reencode": FEATURE,
    "one client": REFERENCE,
}


def polygon(geometry: Any, model: int = 0) -> go.Figure:
    """Feature directions of one model with two hidden units, as arrows from the origin."""
    directions = geometry.directions[model, :2].numpy()
    figure = go.Figure()
    for feature in range(directions.shape[1]):
        x, y = directions[:, feature]
        figure.add_scatter(
            x=[0, x], y=[0, y], mode="lines+markers+text", text=["", str(feature)], textposition="top center",
            line={"color": CATEGORIES[feature % len(CATEGORIES)], "width": 3}, showlegend=False,
            hovertemplate=f"feature {feature}<extra></extra>",
        )  # fmt: skip
    figure.update_yaxes(scaleanchor="x")
    return styled(figure, "Features as directions in two hidden units", "unit 0", "unit 1")


def gram(geometry: Any, model: int = 0) -> go.Figure:
    """Gram matrix of the features of one model, sorted by cluster."""
    order = [feature for group in geometry.clusters(model) for feature in group]
    order += [feature for feature in range(geometry.norms.shape[1]) if feature not in order]
    values = geometry.gram[model].numpy()[np.ix_(order, order)]
    figure = go.Figure(heatmap(values, -1, 1, colorscale=DIVERGING))
    figure.update_yaxes(autorange="reversed", scaleanchor="x")
    return styled(figure, "Who shares a direction with whom", "feature (sorted by cluster)", "feature")


def phase_map(diagram: Any) -> go.Figure:
    """Dropped, superposed or dedicated over density and relative importance."""
    figure = go.Figure(
        go.Heatmap(
            z=diagram.phase, x=diagram.importances, y=diagram.densities, colorscale=PHASE_COLOURS, zmin=0, zmax=2,
            colorbar={"tickvals": [0, 1, 2], "ticktext": ["dropped", "superposed", "dedicated"], "thickness": 12},
        )
    )  # fmt: skip
    figure.update_xaxes(type="log")
    figure.update_yaxes(type="log")
    return styled(figure, "What becomes of the extra feature", "relative importance", "density")


def methods(frame: pd.DataFrame, lines: Mapping[str, float], zero: float) -> go.Figure:
    """Raw and calibrated loss of every method (columns method, basis, raw, calibrated), with reference losses as lines.

    `zero` is the loss of returning nothing, beyond which bars are cut.
    """
    frame = frame.sort_values("calibrated", ascending=False)
    figure = go.Figure()
    names, colours = [label(name) for name in frame["method"]], [BASES.get(basis, NULL) for basis in frame["basis"]]
    figure.add_bar(y=names, x=frame["raw"], orientation="h", name="raw", marker={"color": "#dfe3e8"}, width=0.8)
    figure.add_bar(
        y=names, x=frame["calibrated"], orientation="h", name="calibrated", marker={"color": colours}, width=0.5
    )
    for place, (name, value) in enumerate(lines.items()):
        figure.add_vline(
            x=float(value), line={"color": REFERENCE, "dash": "dot" if place else "solid"}, annotation_text=name,
            annotation_position="bottom right" if place else "top right",
        )  # fmt: skip
    figure.update_layout(barmode="overlay")
    figure.update_xaxes(range=[0, min(1.1 * float(frame["raw"].max()), 1.5 * zero)])
    return styled(figure, "Loss of the fused model", "held-out squared error", height=140 + 28 * len(frame))


def survival(shares: pd.DataFrame) -> go.Figure:
    """Share of every feature `[methods, features]` that each method's fused model returns."""
    names = [label(name) for name in shares.index]
    figure = go.Figure(heatmap(shares.to_numpy(), 0, 1))
    figure.update_yaxes(tickvals=list(range(len(names))), ticktext=names, autorange="reversed")
    figure = styled(figure, "Which features survive", "feature", height=140 + 24 * len(names))
    return figure.update_layout(margin={"l": 160})


def explained_curve(frame: pd.DataFrame, n: int) -> go.Figure:
    """What a linear map between two models' codes explains, with m/n beside it (columns prediction, start, value)."""
    ratio = sorted(frame["prediction"].unique())
    figure = go.Figure()
    figure.add_scatter(x=ratio, y=ratio, name="prediction m/n", line={"color": REFERENCE, "dash": "dash"})
    for start, colour in (("independent", NEURON), ("shared", FEATURE)):
        found = frame[frame["start"] == start].groupby("prediction")["value"]
        figure.add_scatter(
            x=ratio, y=found.mean(), error_y={"array": found.std(ddof=1)}, name=f"{start} initialisations",
            mode="lines+markers", line={"color": colour},
        )  # fmt: skip
    return styled(figure, "What the best linear map explains", f"m / n, n = {n}", "explained variance, held out")


def capacity_curve(frame: pd.DataFrame, clients: float) -> go.Figure:
    """Loss of the union of features over its width, with joint training (columns width, union, joint)."""
    figure, width = go.Figure(), frame["width"]
    figure.add_scatter(x=width, y=frame["union"], name="union of features", line={"color": FEATURE})
    figure.add_scatter(x=width, y=frame["joint"], name="joint training", line={"color": REFERENCE, "dash": "dash"})
    figure.add_hline(y=clients, line={"color": NULL, "dash": "dot"}, annotation_text="one client")
    return styled(figure, "What a wider fused model keeps", "fused units", "held-out squared error")


def words_curve(frame: pd.DataFrame) -> go.Figure:
    """Word autoencoders over width: loss as a multiple of one client's, the regime's verdict under each width."""
    figure = go.Figure()
    for name, rows in frame.groupby("method", sort=False):
        figure.add_scatter(x=rows["m"], y=rows["times client"], name=label(name), line={"color": LINES.get(str(name))})
    verdicts = frame.drop_duplicates("m")
    ticks = [f"{m}<br>{verdict}" for m, verdict in zip(verdicts["m"], verdicts["regime"])]
    figure.update_xaxes(type="log", tickvals=verdicts["m"].tolist(), ticktext=ticks, tickangle=0, tickfont={"size": 11})
    return styled(figure, "Words: rotations catch up as units grow", "hidden units, regime", "times one client's error")


CURVES: dict[str, Callable[..., go.Figure]] = {
    "explained": explained_curve,
    "capacity": capacity_curve,
    "words": words_curve,
}


def outcome_map(frame: pd.DataFrame) -> go.Figure:
    """Where the feature basis wins, ties and loses; crosses where the regime recommended something worse."""
    figure = go.Figure()
    for outcome, colour in OUTCOMES.items():
        for agrees, symbol in ((True, "circle"), (False, "x")):
            rows = frame[(frame["outcome"] == outcome) & (frame["agrees"] == agrees)]
            if len(rows) == 0:
                continue
            text = [f"n={r.n} m={r.m} density={r.density}<br>{r.regime}: {r.recommended}" for r in rows.itertuples()]
            figure.add_scatter(
                x=rows["m"] / rows["n"], y=rows["n"] * rows["density"], mode="markers", text=text, hoverinfo="text",
                marker={"color": colour, "symbol": symbol, "size": 8 + 3 * np.log2(rows["n"] / 8)},
                name=f"feature basis {outcome}" + ("" if agrees else ", regime wrong"),
            )  # fmt: skip
    figure.update_xaxes(type="log")
    figure.update_yaxes(type="log")
    return styled(figure, "Where the feature basis wins", "m / n", "active features per input")
