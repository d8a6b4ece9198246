"""Figures of dictionaries: training history and firing density."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go

from featalign.plots.style import FEATURE, NEURON, REFERENCE, label, styled


def history(dictionary: object, name: str = "") -> go.Figure:
    """Explained variance, L0 and dead latents of a training run (`Dictionary.history`)."""
    frame = dictionary.history  # type: ignore[attr-defined]
    figure = go.Figure()
    axes = (("explained_variance", "explained variance", FEATURE, "y"), ("l0", "L0", REFERENCE, "y2"))
    for column, shown, colour, axis in (*axes, ("dead", "dead latents", NEURON, "y2")):
        figure.add_trace(go.Scatter(x=frame["step"], y=frame[column], name=shown, line={"color": colour}, yaxis=axis))
    figure.update_layout(yaxis2={"overlaying": "y", "side": "right", "title": "L0, dead latents", "showgrid": False})
    return styled(figure, f"Training of {name or 'the dictionary'}", "step", "explained variance")


def density(rates: np.ndarray, name: str = "") -> go.Figure:
    """Histogram of how often latents fire `[F]`, logarithmic; those that never do are counted in the title."""
    rates = np.asarray(rates, dtype=float)
    alive = rates[rates > 0]
    figure = go.Figure(go.Histogram(x=np.log10(alive), nbinsx=40, marker_color=FEATURE))
    figure.update_xaxes(tickvals=[-4, -3, -2, -1, 0], ticktext=["0.01 %", "0.1 %", "1 %", "10 %", "100 %"])
    shown = f", {label(name)}" if name else ""
    title = f"How often latents fire{shown}: {len(rates) - len(alive)} of {len(rates)} never do"
    return styled(figure, title, "share of samples on which a latent is active", "latents", 300)
