"""Figures of whole networks: loss between two of them, accuracies of fused ones, and their spaces."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import plotly.graph_objects as go

from featalign.plots.style import ACCENT, CATEGORIES, FEATURE, NEURON, NULL, REFERENCE, styled

if TYPE_CHECKING:
    import pandas as pd

METHOD_COLOURS = {
    "vanilla": NULL,
    "ot-acts": NEURON,
    "sinkhorn": ACCENT,
    "procrustes": "#30638e",
    "procrustes-wts": "#8d6a9f",
    "feature-project": FEATURE,
}
SYMMETRY_COLOURS = {
    "pinned": NULL,
    "permutation": NEURON,
    "scaled-permutation": ACCENT,
    "orthogonal": FEATURE,
    "linear": "#30638e",
}


def barrier_curves(curves: pd.DataFrame, parents: Sequence[float], title: str) -> go.Figure:
    """Loss along the line between two networks, one curve per method, the two ends as the reference.

    `curves`: method, mixing (weight of the aligned network), loss. `parents`: losses of the aligned and of the other.
    """
    figure = go.Figure()
    for k, (method, curve) in enumerate(curves.groupby("method", sort=False)):
        colour = METHOD_COLOURS.get(str(method), CATEGORIES[k % len(CATEGORIES)])
        excess = curve["loss"] - (1 - curve["mixing"]) * parents[1] - curve["mixing"] * parents[0]
        name = f"{method} (barrier {excess.max():.2f})"
        figure.add_scatter(x=curve["mixing"], y=curve["loss"], name=name, mode="lines+markers", line={"color": colour})
    figure.add_scatter(
        x=[0, 1],
        y=[parents[1], parents[0]],
        name="line between the parents",
        mode="lines",
        line={"color": REFERENCE, "dash": "dot"},
    )
    return styled(figure, title, "weight of the aligned network", "nats per character, held out", 460)


def fusion_table(frame: pd.DataFrame) -> go.Figure:
    """Accuracy at equal weights of every way of fusing, grouped by architecture; parents and ensemble as lines.

    `frame`: indexed by model and name of the row, with `accuracy`.
    """
    figure = go.Figure()
    variants = [("", "raw", NULL), ("+repair", "repair", NEURON), ("+refit", "refit", ACCENT)]
    variants.append(("+repair+refit", "repair and refit", FEATURE))
    models = list(dict.fromkeys(frame.index.get_level_values("model")))
    for suffix, label, colour in variants:
        x: list[list[str]] = [[], []]
        y = []
        for model in models:
            scores = frame.loc[model]["accuracy"]
            for method in [name for name in scores.index if "+" not in name]:
                if method + suffix in scores.index and not method.startswith(("parent", "ensemble")):
                    x[0].append(model)
                    x[1].append(method)
                    y.append(100 * float(scores[method + suffix]))
        figure.add_bar(x=x, y=y, name=label, marker_color=colour)
    for model in models:
        scores = frame.loc[model]["accuracy"]
        best = max(float(scores[name]) for name in scores.index if name.startswith("parent"))
        figure.add_hline(
            y=100 * best,
            line={"dash": "dot", "color": REFERENCE},
            annotation_text=f"better parent, {model}",
            annotation_position="top left" if model == models[0] else "top right",
        )
    return styled(figure, "One-shot fusion of convolutional networks, equal weights", "", "test accuracy, %", 460)


def space_graph(spaces: pd.DataFrame) -> go.Figure:
    """The spaces of a network (`SpaceGraph.to_frame()`) in order: units (length of a bar) and symmetry (colour)."""
    figure = go.Figure()
    for symmetry, colour in SYMMETRY_COLOURS.items():
        chosen = spaces[spaces["symmetry"] == symmetry]
        if len(chosen):
            figure.add_bar(
                y=chosen["space"],
                x=chosen["units"],
                name=symmetry,
                orientation="h",
                marker_color=colour,
                customdata=chosen[["writers", "readers"]],
                hovertemplate="%{y}: %{x} units<br>%{customdata[0]} axes write, %{customdata[1]} read<extra></extra>",
            )
    order = list(spaces["space"])
    figure.update_yaxes(categoryorder="array", categoryarray=order[::-1], tickfont={"size": 11})
    figure = styled(figure, "Spaces found by tracing", "units", "", max(260, 90 + 24 * len(order)))
    return figure.update_layout(margin={"l": 260}, barmode="overlay")
