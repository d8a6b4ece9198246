"""Figures of a diagnosis: effective features per unit against controls, psi curves, the frontier of a sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from featalign.plots.style import CATEGORIES, FEATURE, NULL, REFERENCE, label, styled


def effective_features(layer: Mapping[str, Any], name: str = "") -> go.Figure:
    """Distribution of effective features per unit: the layer, the shuffled-weight network and a random dictionary."""
    figure = go.Figure()
    rows = (
        ("this network", layer["per_unit"], FEATURE),
        ("shuffled weights", layer["per_unit_control"], NULL),
        ("random dictionary", layer["per_unit_random"], REFERENCE),
    )
    for meaning, values, colour in rows:
        kept = np.asarray([value for value in values if value is not None], dtype=float)
        kept = kept[np.isfinite(kept)]
        if len(kept):
            figure.add_trace(
                go.Violin(
                    x=kept, name=meaning, line_color=colour, orientation="h", side="positive", width=1.6, points=False,
                    meanline_visible=True, spanmode="hard",
                )
            )  # fmt: skip
    figure.update_layout(showlegend=False, violingap=0.1)
    return styled(figure, f"Effective features per unit, {label(name)}", "effective features exp(H)", "", 300)


def psi_curves(layer: Mapping[str, Any], name: str = "") -> go.Figure:
    """Effective features per dimension along sparsity, one line per width; bars span the seeds, control dashed."""
    figure = go.Figure()
    rows = layer["sweep"]
    widths = sorted({row["width"] for row in rows})
    for network, dash in (("model", "solid"), ("control", "dash")):
        for place, width in enumerate(widths):
            points = _over_seeds([r for r in rows if r["width"] == width and r["network"] == network], "psi")
            if not points:
                continue
            l0, mean, low, high = map(np.asarray, zip(*points))
            figure.add_trace(
                go.Scatter(
                    x=l0, y=mean, mode="lines+markers", line={"color": CATEGORIES[place], "dash": dash},
                    name=f"width {width}" + (", shuffled weights" if network == "control" else ""),
                    error_y={"type": "data", "symmetric": False, "array": high - mean, "arrayminus": mean - low},
                )
            )  # fmt: skip
    figure.update_xaxes(type="log")
    return styled(
        figure, f"Superposition psi along width and sparsity, {label(name)}", "L0", "effective features / units", 380
    )


def pareto(rows: Sequence[Mapping[str, Any]], name: str = "") -> go.Figure:
    """Explained variance against L0 of a sweep, a line per width; the frontier is the upper left."""
    figure = go.Figure()
    rows = [row for row in rows if row.get("network", "model") == "model"]
    for place, width in enumerate(sorted({row["width"] for row in rows})):
        points = _over_seeds([row for row in rows if row["width"] == width], "explained_variance")
        l0, mean, low, high = map(np.asarray, zip(*points))
        figure.add_trace(
            go.Scatter(
                x=l0, y=mean, mode="lines+markers", name=f"width {width}", line={"color": CATEGORIES[place]},
                error_y={"type": "data", "symmetric": False, "array": high - mean, "arrayminus": mean - low},
            )
        )  # fmt: skip
    figure.update_xaxes(type="log")
    return styled(
        figure, f"Explained variance against sparsity, {label(name)}", "L0", "held-out explained variance", 340
    )


def _over_seeds(rows: Sequence[Mapping[str, Any]], value: str) -> list[tuple[float, float, float, float]]:
    """`(L0, mean, low, high)` per k."""
    points = []
    for k in sorted({row["k"] for row in rows}):
        own = [row for row in rows if row["k"] == k]
        values = [row[value] for row in own]
        points.append((float(np.mean([r["l0"] for r in own])), float(np.mean(values)), min(values), max(values)))
    return points
