"""One look for every figure: template, colours with a fixed meaning, and heatmaps small enough to embed."""

from __future__ import annotations

import hashlib
import html
import re
from typing import Any

import numpy as np
import plotly.graph_objects as go

NEURON = "#d1495b"  # neuron basis
FEATURE = "#00798c"  # feature basis
NULL = "#9aa0a6"  # nulls and untrained controls
REFERENCE = "#3d405b"  # parents, ensembles, joint training
ACCENT = "#edae49"
CLIENTS = ("#30638e", "#e07a5f", "#81b29a", "#8d6a9f", "#c8963e", "#5b8e7d", "#b56576", "#6d6875")
CATEGORIES = (FEATURE, NEURON, ACCENT, "#30638e", "#8d6a9f", "#81b29a", "#e07a5f", REFERENCE, NULL, "#5b8e7d")
SEQUENTIAL = [[0.0, "#ffffff"], [0.25, "#cfe6ea"], [0.5, "#7fbcc6"], [0.75, "#2b93a3"], [1.0, "#003d47"]]
DIVERGING = [[0.0, "#b23a48"], [0.25, "#e8b4b8"], [0.5, "#ffffff"], [0.75, "#a9cfe0"], [1.0, "#1d5c7d"]]
_TAG = re.compile(r"<(?!(?:/?(?:b|i|sub|sup|extra)|br)>)", re.IGNORECASE)
_LONGEST = 60  # letters of a name in a figure
FONT = "Inter, 'Helvetica Neue', Arial, sans-serif"


def styled(figure: go.Figure, title: str, x: str = "", y: str = "", height: int = 420) -> go.Figure:
    """Apply the house template: title, axis labels, fonts, quiet grid; returns the same figure."""
    figure.update_layout(
        template="plotly_white",
        title={"text": title, "x": 0.0, "xanchor": "left", "font": {"size": 16}},
        font={"family": FONT, "size": 13, "color": "#1f2933"},
        colorway=list(CATEGORIES),
        margin={"l": 64, "r": 24, "t": 56, "b": 52},
        height=height,
        legend={"bgcolor": "rgba(255,255,255,0.7)"},
    )
    if x:
        figure.update_xaxes(title_text=x)
    if y:
        figure.update_yaxes(title_text=y)
    return figure


def heatmap(values: np.ndarray, low: float | None = None, high: float | None = None, **options: Any) -> go.Heatmap:
    """A heatmap of `values [rows, columns]` quantised to 256 levels (a tenth of the bytes of float64).

    Hover shows the quantised value in the original units.
    """
    values = np.asarray(values, dtype=float)
    low = float(np.nanmin(values)) if low is None else low
    high = float(np.nanmax(values)) if high is None else high
    span = high - low if high > low else 1.0
    levels = np.clip(np.round((np.nan_to_num(values, nan=low) - low) / span * 255), 0, 255).astype(np.uint8)
    ticks = np.linspace(0, 255, 5)
    colorbar = {"tickvals": ticks, "ticktext": [f"{low + span * tick / 255:.2f}" for tick in ticks], "thickness": 12}
    options = {"colorscale": SEQUENTIAL, "zmin": 0, "zmax": 255, "colorbar": colorbar, **options}
    return go.Heatmap(z=levels, hovertemplate="row %{y}, column %{x}<extra></extra>", **options)


def label(name: object) -> str:
    """A name as plotly shows it letter by letter: entities for what would be a tag, long ones cut in the middle."""
    text = " ".join(str(name).split())
    if len(text) > _LONGEST:
        digest = hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:4]
        text = f"{text[:32]}…{digest}…{text[-16:]}"
    return html.escape(text, quote=False)


def without_tags(value: Any) -> Any:
    """A figure's JSON in which no tag is left but `<br>`, `<b>`, `<i>`, `<sub>`, `<sup>` and `<extra>`, bare ones."""
    if isinstance(value, dict):
        return {key: item if key == "bdata" else without_tags(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_tags(item) for item in value]
    return _TAG.sub("&lt;", value) if isinstance(value, str) else value
