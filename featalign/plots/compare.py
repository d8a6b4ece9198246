"""Figures of a comparison: accuracies with seeds, mixing-weight curves, plans side by side, matched correlations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from featalign.plots.style import ACCENT, FEATURE, NEURON, NULL, REFERENCE, heatmap, label, styled

BASIS_COLOURS = {"none": NULL, "neuron": NEURON, "feature": FEATURE, "pool": ACCENT}
BASIS_NAMES = {"none": "no alignment", "neuron": "neuron basis", "feature": "feature basis", "pool": "unit pool"}


def figures(content: Mapping[str, Any], matrices: Mapping[str, np.ndarray]) -> dict[str, go.Figure]:
    """Every figure of the comparison page by name, from the content of results.json and the saved matrices."""
    found = {"accuracy": accuracy(content)}
    if content["curves"]:
        found["curves"] = mixing_curves(content)
    for space in content["spaces"]:
        found[f"{space}/plans"] = plans(matrices, space)
        found[f"{space}/correlations"] = correlations(matrices, space)
    if content["spaces"]:
        found["polysemanticity"] = polysemanticity(content)
    return found


def accuracy(content: Mapping[str, Any]) -> go.Figure:
    """Accuracy of every row with one point per seed, coloured by basis, best at the top."""
    methods = sorted(content["methods"].items(), key=lambda item: item[1]["accuracy"]["mean"])
    figure = go.Figure()
    for name, entry in methods:
        colour = REFERENCE if entry["kind"] in {"client", "ensemble"} else BASIS_COLOURS[entry["basis"]]
        values = [100 * value for value in entry["accuracy"]["values"]]
        figure.add_bar(
            y=[label(name)], x=[float(np.mean(values))], orientation="h", marker_color=colour, opacity=0.35,
            hovertemplate="%{y}: %{x:.2f} %<extra></extra>", showlegend=False,
        )  # fmt: skip
        figure.add_scatter(
            y=[label(name)] * len(values), x=values, mode="markers", marker={"color": colour, "size": 8},
            hovertemplate="seed %{customdata}: %{x:.2f} %<extra></extra>", customdata=list(range(len(values))),
            showlegend=False,
        )  # fmt: skip
    for colour, meaning in [
        (REFERENCE, "clients and ensembles"),
        *((BASIS_COLOURS[b], BASIS_NAMES[b]) for b in BASIS_NAMES),
    ]:
        figure.add_scatter(x=[None], y=[None], mode="markers", marker={"color": colour, "size": 10}, name=meaning)
    styled(figure, "Accuracy on held-out data (points: seeds)", "accuracy, %", "", height=160 + 24 * len(methods))
    figure.update_layout(barmode="overlay", margin={"l": 170}, legend={"orientation": "h", "y": -0.12})
    return figure


def mixing_curves(content: Mapping[str, Any]) -> go.Figure:
    """Accuracy along the mixing weight: dashed before the refit, solid after, with clients and ensemble as lines."""
    figure = go.Figure()
    dashes = {
        "none": ["circle"],
        "neuron": ["square", "diamond"],
        "feature": ["triangle-up", "x", "cross"],
        "pool": ["star", "hexagon"],
    }
    counters: dict[str, int] = {}
    symbols: dict[str, str] = {}
    for name, curve in content["curves"].items():
        entry = content["methods"][name]
        method = entry["detail"]["method"]
        if method not in symbols:
            choices = dashes[entry["basis"]]
            symbols[method] = choices[counters.get(entry["basis"], 0) % len(choices)]
            counters[entry["basis"]] = counters.get(entry["basis"], 0) + 1
        figure.add_scatter(
            x=curve["mixing"], y=[100 * point["mean"] for point in curve["accuracy"]], name=label(name),
            mode="lines+markers",
            error_y={"array": [100 * point["std"] for point in curve["accuracy"]], "thickness": 1, "width": 2},
            line={"color": BASIS_COLOURS[entry["basis"]], "dash": "solid" if entry["detail"]["refitted"] else "dot"},
            marker={"symbol": symbols[method], "size": 8},
            visible="legendonly" if method == "feature-fold" else True,
        )  # fmt: skip
    best = max(e["accuracy"]["mean"] for n, e in content["methods"].items() if n.startswith("client-"))
    for value, meaning in (
        (best, "best client"),
        (content["methods"]["ensemble-softmax"]["accuracy"]["mean"], "ensemble"),
    ):
        figure.add_hline(y=100 * value, line={"color": REFERENCE, "dash": "dash", "width": 1}, annotation_text=meaning)
    title = "Accuracy along the mixing weight (dotted: fused, solid: fused and refitted)"
    return styled(figure, title, "weight of the first client", "accuracy, %", height=520)


def plans(matrices: Mapping[str, np.ndarray], space: str) -> go.Figure:
    """Correlations sorted by the plan, neuron basis beside feature basis: a bright diagonal is agreement."""
    figure = make_subplots(
        cols=2,
        rows=1,
        horizontal_spacing=0.12,
        subplot_titles=(_count(matrices, space, "neuron"), _count(matrices, space, "feature")),
    )
    for column, basis in enumerate(("neuron", "feature"), start=1):
        matrix = matrices[f"{space}/{basis}/correlation"]
        bar = {"tickvals": [0, 127.5, 255], "ticktext": ["0", "0.5", "1"], "thickness": 10, "title": "corr"}
        trace = heatmap(matrix, 0.0, 1.0, colorbar=bar, showscale=column == 2)
        figure.add_trace(trace, row=1, col=column)
        figure.update_yaxes(autorange="reversed", row=1, col=column)
    figure.update_xaxes(title_text="units of the reference", row=1, col=1)
    figure.update_xaxes(title_text="latents of the reference", row=1, col=2)
    figure.update_yaxes(title_text="units of client A", row=1, col=1)
    figure.update_yaxes(title_text="latents of client A", row=1, col=2)
    styled(figure, f"{label(space)}: who matches whom (matched pairs first, best on top)", height=500)
    figure.update_layout(margin={"t": 92})
    return figure


def _count(matrices: Mapping[str, np.ndarray], space: str, basis: str) -> str:
    matched, rows = len(matrices[f"{space}/{basis}/matched"]), len(matrices[f"{space}/{basis}/best"])
    mean = float(matrices[f"{space}/{basis}/matched"].mean()) if matched else 0.0
    what = "units" if basis == "neuron" else "alive latents"
    return f"{basis} basis: {matched} of {rows} {what} matched, mean correlation {mean:.2f}"


def correlations(matrices: Mapping[str, np.ndarray], space: str) -> go.Figure:
    """Histograms of matched correlations in both bases, with the null's best and the threshold taken from it."""
    figure = make_subplots(
        rows=1, cols=2, shared_yaxes=True, horizontal_spacing=0.06, subplot_titles=("neuron basis", "feature basis")
    )
    for column, (basis, colour) in enumerate((("neuron", NEURON), ("feature", FEATURE)), start=1):
        for key, meaning, shade in (("null", "best under the null", NULL), ("matched", f"matched {basis}s", colour)):
            values = matrices[f"{space}/{basis}/{key}"]
            counts, edges = np.histogram(values, bins=40, range=(0, 1))
            figure.add_bar(
                x=((edges[1:] + edges[:-1]) / 2).round(4), y=(counts / max(len(values), 1)).round(5), width=1 / 40,
                marker_color=shade, opacity=0.65, name=meaning, row=1, col=column,
                showlegend=column == 1 or key != "null",
            )  # fmt: skip
        threshold = float(matrices[f"{space}/{basis}/threshold"][0])
        figure.add_vline(
            x=threshold,
            line={"color": REFERENCE, "dash": "dot"},
            annotation_text="null threshold",
            annotation_position="bottom right",
            row=1,
            col=column,
        )
        figure.update_xaxes(title_text="correlation over the probe", range=[0, 1.02], row=1, col=column)
    figure.update_yaxes(title_text="share", row=1, col=1)
    styled(figure, f"{label(space)}: matched correlations against the null", height=370)
    figure.update_layout(barmode="overlay", bargap=0, margin={"t": 92})
    return figure


def polysemanticity(content: Mapping[str, Any]) -> go.Figure:
    """Effective features per unit, and class selectivity of units and latents with the shuffled-label null."""
    figure = make_subplots(
        rows=1,
        cols=2,
        horizontal_spacing=0.12,
        subplot_titles=("effective number of features per unit", "class selectivity"),
    )
    rows = [
        (f"{label(space)}, {label(entry['client'])}", entry)
        for space, seeds in content["spaces"].items()
        for entry in seeds["seeds"][0]["polysemanticity"]
    ]
    keys = (
        ("effective_features", "features per unit", FEATURE, 1),
        ("unit_selectivity", "units", NEURON, 2),
        ("latent_selectivity", "latents", FEATURE, 2),
        ("unit_selectivity_null", "units, labels shuffled", NULL, 2),
        ("latent_selectivity_null", "latents, labels shuffled", REFERENCE, 2),
    )
    for key, meaning, colour, column in keys:
        kept = [(place, entry[key]) for place, entry in rows if entry[key]["count"]]
        figure.add_scatter(
            x=[place for place, _ in kept], y=[value["quartiles"][1] for _, value in kept], name=meaning,
            mode="markers", marker={"color": colour, "size": 10},
            error_y={
                "type": "data", "symmetric": False, "thickness": 1.5,
                "array": [value["quartiles"][2] - value["quartiles"][1] for _, value in kept],
                "arrayminus": [value["quartiles"][1] - value["quartiles"][0] for _, value in kept],
            },
            row=1, col=column,
        )  # fmt: skip
    figure.update_yaxes(rangemode="tozero")
    styled(figure, "Polysemanticity by space and client (median and quartiles)", height=400)
    return figure.update_layout(margin={"t": 92})
