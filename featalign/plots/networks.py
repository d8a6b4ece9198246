"""Figures of whole networks: loss between two of them, accuracies of fused ones, and their spaces."""

from __future__ import annotations

from typing import TYPE_CHECKING

import plotly.graph_objects as go

from featalign.plots.style import ACCENT, CATEGORIES, FEATURE, NEURON, NULL, REFERENCE, styled

if TYPE_CHECKING:
    import pandas as pd

    from featalign.bench.barrier import BarrierResult
    from featalign.bench.vision import VisionResult

WAY_COLOURS = {
    "vanilla": NULL,
    "permutation": NEURON,
    "soft": ACCENT,
    "orthogonal-activations": "#30638e",
    "orthogonal-weights": "#8d6a9f",
    "feature-orthogonal": FEATURE,
}
SYMMETRY_COLOURS = {
    "pinned": NULL,
    "permutation": NEURON,
    "scaled-permutation": ACCENT,
    "orthogonal": FEATURE,
    "linear": "#30638e",
}


def barrier_curves(result: BarrierResult) -> go.Figure:
    """Loss along the line between two networks, one curve per way of aligning, the two ends as the reference."""
    figure = go.Figure()
    for curve in result.curves:
        colour = WAY_COLOURS.get(curve.way, CATEGORIES[0])
        label = f"{curve.way} (barrier {curve.barrier:.2f})"
        figure.add_scatter(x=curve.shares, y=curve.losses, name=label, mode="lines+markers", line={"color": colour})
    ends = [result.parents[1], result.parents[0]]
    figure.add_scatter(
        x=[0, 1], y=ends, name="line between the parents", mode="lines", line={"color": REFERENCE, "dash": "dot"}
    )
    title = f"Loss between two character transformers ({result.pair})"
    return styled(figure, title, "weight of the aligned network", "nats per character, held out", 460)


def fusion_table(result: VisionResult) -> go.Figure:
    """Accuracy at equal weights of every way of fusing, grouped by architecture; parents and ensemble as lines."""
    frame = result.to_frame()
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
