"""Figures of a match: scores against their null, and where the latents of either client go."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import plotly.graph_objects as go

from featalign.plots.style import ACCENT, CLIENTS, FEATURE, NEURON, NULL, REFERENCE, label, styled

KINDS = {"matched": FEATURE, "split": ACCENT, "merged": REFERENCE, "own": NEURON, "dead": NULL}


def score_histogram(best: np.ndarray, chance: np.ndarray, minimum: float) -> go.Figure:
    """Best score of every alive latent of either client `[F]`, and the same after the samples were shuffled `[F]`."""
    bins = {"start": 0.0, "end": 1.0, "size": 0.025}
    figure = go.Figure()
    figure.add_trace(go.Histogram(x=np.asarray(chance, float), xbins=bins, name="by chance", marker_color=NULL))
    figure.add_trace(go.Histogram(x=np.asarray(best, float), xbins=bins, name="found", marker_color=FEATURE))
    figure.add_vline(x=minimum, line={"color": REFERENCE, "dash": "dot"})
    figure.update_layout(barmode="overlay")
    figure.update_traces(opacity=0.75)
    figure.update_xaxes(range=[0, 1])
    return styled(figure, "Best score of every latent, and by chance", "score", "latents", 340)


def flow(counts: Mapping[str, tuple[int, int]], a: str, b: str) -> go.Figure:
    """Latents of A (left) and of B (right) by what they are: `{kind: (of A, of B)}`."""
    shown = {kind: counts[kind] for kind in KINDS if max(counts.get(kind, (0, 0))) > 0}
    names = [f"{label(a)}: {sum(n for n, _ in shown.values())}", f"{label(b)}: {sum(m for _, m in shown.values())}"]
    nodes = [*names, *(f"{kind}: {n} | {m}" for kind, (n, m) in shown.items())]
    links: dict[str, list[Any]] = {"source": [], "target": [], "value": [], "color": []}
    for place, (kind, sides) in enumerate(shown.items(), start=2):
        for client, count in enumerate(sides):
            if count:
                ends = (0, place) if client == 0 else (place, 1)
                values: tuple[Any, ...] = (*ends, count, _faint(KINDS[kind]))
                for key, value in zip(links, values):
                    links[key].append(value)
    colours = [CLIENTS[0], CLIENTS[1], *(KINDS[kind] for kind in shown)]
    node = {"label": nodes, "color": colours, "pad": 18, "thickness": 14}
    return styled(go.Figure(go.Sankey(node=node, link=links)), "Where the latents go", height=320)


def _faint(colour: str) -> str:
    red, green, blue = (int(colour[k : k + 2], 16) for k in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.35)"
