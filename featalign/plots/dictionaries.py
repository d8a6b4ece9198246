"""Figures of dictionaries: training history and firing density."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go

from featalign.plots.style import FEATURE, NEURON, REFERENCE, styled


def history(dictionary: object, name: str = "") -> go.Figure:
    """Explained variance, L0 and dead latents of a training run (`Dictionary.history`)."""
    frame = dictionary.history  # type: ignore[attr-defined]
    figure = go.Figure()
    axes = (("explained_variance", "explained variance", FEATURE, "y"), ("l0", "L0", REFERENCE, "y2"))
    for column, label, colour, axis in (*axes, ("dead", "dead latents", NEURON, "y2")):
        figure.add_trace(go.Scatter(x=frame["step"], y=frame[column], name=label, line={"color": colour}, yaxis=axis))
    figure.update_layout(yaxis2={"overlaying": "y", "side": "right", "title": "L0, dead latents", "showgrid": False})
    return styled(figure, f"Training of {name or 'the dictionary'}", "step", "explained variance")


def density(codes: np.ndarray, name: str = "") -> go.Figure:
    """Histogram of the log firing density of latents from codes `[samples, F]`; latents that never fire are counted."""
    rate = (np.asarray(codes) > 0).mean(0)
    alive = rate[rate > 0]
    figure = go.Figure(go.Histogram(x=np.log10(alive), nbinsx=40, marker_color=FEATURE))
    title = f"Firing density{', ' + name if name else ''}: {len(rate) - len(alive)} of {len(rate)} never fire"
    return styled(figure, title, "log10 share of samples", "latents", 300)
