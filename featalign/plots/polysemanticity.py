"""Figures of a diagnosis: effective features per unit against controls, psi curves, the frontier of a sweep."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from featalign.plots.style import CATEGORIES, FEATURE, NULL, REFERENCE, label, styled

CONTROL = "shuffled weights"


def effective_features(units: pd.DataFrame, name: str = "") -> go.Figure:
    """Distribution of effective features per unit: the layer, the shuffled-weight network and random directions.

    Args:
        units: columns effective, control, random.
    """
    figure = go.Figure()
    rows = (
        ("this network", "effective", FEATURE),
        (CONTROL, "control", NULL),
        ("random directions", "random", REFERENCE),
    )
    for meaning, column, colour in rows:
        kept = units[column].to_numpy(dtype=float)
        kept = kept[np.isfinite(kept)]
        if len(kept):
            figure.add_trace(
                go.Violin(
                    x=kept, name=meaning, line_color=colour, orientation="h", side="positive", width=1.6, points=False,
                    meanline_visible=True, spanmode="hard",
                )
            )  # fmt: skip
    figure.update_layout(showlegend=False, violingap=0.1)
    styled(figure, f"Features that a unit carries, {label(name)}", "effective features of a unit", "", 300)
    return figure.update_yaxes(automargin=True)


def psi_curves(sweep: pd.DataFrame, name: str = "") -> go.Figure:
    """Effective features per unit of the layer along sparsity, one line per width; bars span the seeds, control dashed.

    Args:
        sweep: columns network, width, k, seed, l0, psi.
    """
    figure = go.Figure()
    widths = sorted(sweep["width"].unique())
    for network, dash in (("model", "solid"), (CONTROL, "dash")):
        for place, width in enumerate(widths):
            own = sweep[(sweep["width"] == width) & (sweep["network"] == network)]
            if len(own):
                shown = f"{width} latents" + (f", {network}" if network == CONTROL else "")
                figure.add_trace(_line(own, "psi", shown, CATEGORIES[place], dash))
    return _along(figure, f"Effective features per unit of the layer, {label(name)}", "effective features / units", 380)


def pareto(sweep: pd.DataFrame, name: str = "") -> go.Figure:
    """Explained variance against active latents, a line per width; the frontier is the upper left.

    Args:
        sweep: columns network, width, k, seed, l0, explained_variance.
    """
    figure = go.Figure()
    own = sweep[sweep["network"] == "model"]
    for place, width in enumerate(sorted(own["width"].unique())):
        rows = own[own["width"] == width]
        figure.add_trace(_line(rows, "explained_variance", f"{width} latents", CATEGORIES[place]))
    return _along(figure, f"Explained variance against sparsity, {label(name)}", "explained variance", 340)


def _along(figure: go.Figure, title: str, y: str, height: int) -> go.Figure:
    figure.update_xaxes(type="log", dtick="D2")
    return styled(figure, title, "active latents per sample (L0)", y, height)


def _line(rows: pd.DataFrame, value: str, name: str, colour: str, dash: str = "solid") -> go.Scatter:
    """Mean over seeds for every k; bars from the lowest to the highest seed."""
    groups = rows.groupby("k", sort=True)
    mean, low, high = groups[value].mean(), groups[value].min(), groups[value].max()
    return go.Scatter(
        x=groups["l0"].mean().tolist(), y=mean.tolist(), mode="lines+markers", name=name,
        line={"color": colour, "dash": dash},
        error_y={
            "type": "data", "symmetric": False, "array": (high - mean).tolist(), "arrayminus": (mean - low).tolist()
        },
    )  # fmt: skip
