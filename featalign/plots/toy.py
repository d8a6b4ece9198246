"""Figures of toy models: polygons, Gram matrices, phases, methods against the truth, curves and the outcome map."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from featalign.plots.style import ACCENT, CATEGORIES, DIVERGING, FEATURE, NEURON, NULL, REFERENCE, heatmap, styled

OUTCOMES = {"wins": FEATURE, "ties": NULL, "loses": NEURON}
PHASE_COLOURS = [[0, "#f1f3f5"], [0.5, ACCENT], [1, FEATURE]]
CURVE_COLOURS = {
    "average": NULL,
    "neuron-ot": NEURON,
    "procrustes": ACCENT,
    "procrustes-weights": CATEGORIES[3],
    "feature-ot": FEATURE,
    "single": REFERENCE,
}
FEATURE_METHODS = {"feature-ot", "union", "universal-dictionary", "feature-orthogonal", "feature-fold"}


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


def methods(result: Any) -> go.Figure:
    """Raw and calibrated loss of every method, with joint training and one client as lines."""
    frame = result.to_frame().sort_values("calibrated", ascending=False)
    colours = [
        NULL if name == "random-dictionary" else FEATURE if name in FEATURE_METHODS else NEURON
        for name in frame["method"]
    ]
    figure = go.Figure()
    figure.add_bar(
        y=frame["method"], x=frame["raw"], orientation="h", name="raw", marker={"color": "#dfe3e8"}, width=0.8
    )
    figure.add_bar(
        y=frame["method"], x=frame["calibrated"], orientation="h", name="calibrated", marker={"color": colours},
        width=0.5,
    )  # fmt: skip
    for value, label, dash in (
        (np.mean(result.joint), "joint", "solid"),
        (np.mean(result.single), "one client", "dot"),
    ):
        side = "top right" if dash == "solid" else "bottom right"
        figure.add_vline(
            x=float(value), line={"color": REFERENCE, "dash": dash}, annotation_text=label, annotation_position=side
        )
    figure.update_layout(barmode="overlay")
    figure.update_xaxes(range=[0, min(1.1 * float(frame["raw"].max()), 1.5 * result.zero)])  # worse than nothing: cut
    return styled(figure, "Loss of the fused model", "held-out squared error", height=140 + 28 * len(frame))


def survival(result: Any) -> go.Figure:
    """Share of every feature that each method's fused model returns."""
    names = list(result.survival)
    figure = go.Figure(heatmap(np.array([result.survival[name] for name in names]), 0, 1))
    figure.update_yaxes(tickvals=list(range(len(names))), ticktext=names, autorange="reversed")
    figure = styled(figure, "Which features survive", "feature", height=140 + 24 * len(names))
    return figure.update_layout(margin={"l": 160})


def explained_curve(curve: Any) -> go.Figure:
    """What a linear map between two models' codes explains, with m/n beside it."""
    ratio = curve.prediction
    figure = go.Figure()
    figure.add_scatter(x=ratio, y=ratio, name="prediction m/n", line={"color": REFERENCE, "dash": "dash"})
    for values, name, colour in (
        (curve.independent, "independent initialisations", NEURON),
        (curve.shared, "shared initialisation", FEATURE),
    ):
        means, spread = [float(np.mean(v)) for v in values], [float(np.std(v)) for v in values]
        figure.add_scatter(
            x=ratio, y=means, error_y={"array": spread}, name=name, mode="lines+markers", line={"color": colour}
        )
    return styled(figure, "What the best linear map explains", "m / n", "explained variance, held out")


def capacity_curve(curve: Any) -> go.Figure:
    """Loss of the union decode over its width, with joint training at the same width."""
    figure = go.Figure()
    figure.add_scatter(x=curve.widths, y=curve.union, name="union of features", line={"color": FEATURE})
    figure.add_scatter(x=curve.widths, y=curve.joint, name="joint training", line={"color": REFERENCE, "dash": "dash"})
    figure.add_hline(y=curve.clients, line={"color": NULL, "dash": "dot"}, annotation_text="one client")
    return styled(figure, "What a wider fused model keeps", "fused units", "held-out squared error")


def words_curve(curve: Any) -> go.Figure:
    """Word autoencoders over width: loss relative to one client, the regime's verdict under each width."""
    figure = go.Figure()
    single = np.array(curve.losses["single"])
    for name, values in curve.losses.items():
        colour = CURVE_COLOURS.get(name)
        figure.add_scatter(x=curve.widths, y=np.array(values) / single, name=name, line={"color": colour})
    ticks = [f"{m}<br>{verdict['name']}" for m, verdict in zip(curve.widths, curve.regimes)]
    figure.update_xaxes(type="log", tickvals=list(curve.widths), ticktext=ticks, tickangle=0, tickfont={"size": 11})
    return styled(figure, "Words: rotations catch up as units grow", "hidden units, regime", "times one client's error")


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


def page(result: Any, path: Path | str) -> Path:
    """One self-contained page with the figures of a comparison."""
    parts = [
        figure.to_html(full_html=False, include_plotlyjs=index == 0)
        for index, figure in enumerate((methods(result), survival(result)))
    ]
    path = Path(path)
    head = "<!doctype html><meta charset='utf-8'><title>Toy models</title><body>"
    path.write_text(head + "".join(parts) + "</body>", encoding="utf-8")
    return path
