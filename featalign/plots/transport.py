"""Figures of transport: plans with their certificate, convergence, and FedAVOT against its rivals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from featalign.plots.style import ACCENT, CATEGORIES, FEATURE, NEURON, NULL, REFERENCE, heatmap, styled

AVOT_COLOURS = {
    "fedavot": FEATURE,
    "fedavot_online": CATEGORIES[5],
    "uniform": NEURON,
    "renormalised": ACCENT,
    "horvitz_thompson": CATEGORIES[4],
    "unnormalised": NULL,
    "full": REFERENCE,
}


def plan(result: Any, cost: np.ndarray | None = None) -> go.Figure:
    """The coupling `[n, m]` of a `Plan` as a heatmap with its certificate in the title, beside its cost if given."""
    certificate = f"value {result.value:.4g}, bound {result.lower_bound:.4g}, gap {result.gap:.1e}"
    panels = 1 if cost is None else 2
    figure = make_subplots(rows=1, cols=panels, subplot_titles=["ground cost", "plan"][-panels:])
    if cost is not None:
        figure.add_trace(heatmap(cost, showscale=False), row=1, col=1)
    figure.add_trace(heatmap(result.dense(), showscale=False), row=1, col=panels)
    figure.update_yaxes(autorange="reversed", title_text="source")
    figure.update_xaxes(title_text="target")
    return styled(figure, f"{result.method} plan: {certificate}")


def certificate(result: Any, cost: np.ndarray) -> go.Figure:
    """Reduced costs `C - f - g` of used and unused pairs: none negative, so the dual is feasible; zero where used."""
    f, g = result.potentials
    slack = np.asarray(cost) - f[:, None] - g[None, :]
    used = result.dense() > 0
    figure = go.Figure()
    for name, values, colour in (("unused pairs", slack[~used], NULL), ("pairs in the plan", slack[used], FEATURE)):
        height, edges = np.histogram(values, bins=60, range=(min(0.0, slack.min()), slack.max()))
        figure.add_bar(x=(edges[1:] + edges[:-1]) / 2, y=height, name=name, marker_color=colour)
    figure.update_layout(barmode="overlay", bargap=0)
    figure.update_yaxes(type="log")
    sign = "=" if result.gap <= 1e-6 * abs(result.value) else ">"
    title = f"Primal {result.value:.6g} {sign} dual {result.lower_bound:.6g}: no reduced cost is negative"
    return styled(figure, title, "reduced cost C - f - g", "pairs")


def convergence(
    errors: Sequence[float], at: Sequence[int], rate: float | None = None, title: str = "Sinkhorn converges linearly"
) -> go.Figure:
    """Marginal error over iterations on a logarithmic axis, with the bound that contracts by `rate` per iteration."""
    figure = go.Figure()
    figure.add_scatter(x=list(at), y=list(errors), name="measured", line_color=FEATURE)
    if rate is not None:
        steps = np.asarray(at, dtype=float)
        bound = errors[0] * rate ** (steps - steps[0])
        figure.add_scatter(
            x=list(at),
            y=bound.tolist(),
            name=f"Hilbert-metric bound, {rate:.4f} per iteration",
            line={"color": NULL, "dash": "dash"},
        )
    lowest = max(min(errors), 1e-17)
    figure.update_yaxes(type="log", exponentformat="power", range=[np.log10(lowest) - 0.5, np.log10(max(errors)) + 0.5])
    return styled(figure, title, "iteration", "relative marginal error")


def weak_duality(
    primal: Sequence[float],
    dual: Sequence[float],
    at: Sequence[float],
    x: str = "iteration",
    optimum: float | None = None,
) -> go.Figure:
    """Primal values above, dual values below, and the optimum that they close in on."""
    figure = go.Figure()
    figure.add_scatter(
        x=list(at), y=list(primal), name="primal (rounded plan)", line_color=NEURON, mode="lines+markers"
    )
    figure.add_scatter(
        x=list(at), y=list(dual), name="dual (feasible potentials)", line_color=FEATURE, mode="lines+markers"
    )
    if optimum is not None:
        line = {"color": REFERENCE, "dash": "dot"}
        figure.add_scatter(x=list(at), y=[optimum] * len(at), name="exact optimum", line=line, mode="lines")
    return styled(figure, "Weak duality: every dual value bounds every primal value", x, "transport cost")


def avot(curves: Any, labels: Mapping[str, str]) -> go.Figure:
    """Excess loss of aggregation rules over rounds (left) and where they settle as the step shrinks (right).

    `curves` as `featalign.federated.avot.avot_experiment` returns them.
    """
    figure = make_subplots(
        rows=1,
        cols=2,
        subplot_titles=[f"step {curves.steps[len(curves.steps) // 2]:g}", "settled, last fifth of rounds"],
    )
    for rule, label in labels.items():
        line = {"color": AVOT_COLOURS[rule], "dash": "dot" if rule == "full" else "solid"}
        values = curves.curves[rule]
        width = max(1, len(values) // 200)
        whole = len(values) // width * width
        smooth, rounds = (part[:whole].reshape(-1, width).mean(axis=1) for part in (values, curves.rounds))
        figure.add_scatter(x=rounds, y=np.maximum(smooth, 1e-8), name=label, legendgroup=rule, line=line, row=1, col=1)
        figure.add_scatter(
            x=curves.steps,
            y=np.maximum(curves.floors[rule], 1e-8),
            error_y={"array": curves.spreads[rule], "thickness": 1},
            mode="lines+markers",
            legendgroup=rule,
            showlegend=False,
            line=line,
            row=1,
            col=2,
        )
    figure.update_yaxes(type="log", exponentformat="power", range=[-4.5, 0.2], dtick=1)
    figure.update_yaxes(title_text="excess loss", row=1, col=1)
    figure.update_xaxes(title_text="round", row=1, col=1)
    figure.update_xaxes(
        type="log", tickvals=curves.steps, title_text="step (share of 1 / largest curvature)", row=1, col=2
    )
    title = "Only unbiased weights reach the optimum of the users who count"
    figure = styled(figure, title, height=460)
    figure.update_layout(legend={"orientation": "h", "y": -0.2}, margin={"b": 110})
    return figure


def avot_rates(rates: Any, labels: Mapping[str, str]) -> go.Figure:
    """Error of every rule over the number of rounds T, beside `1 / sqrt(T)`, with fitted slopes in the legend.

    `rates` as `featalign.federated.avot.avot_rates` returns them.
    """
    figure = go.Figure()
    for rule, label in labels.items():
        found, values = rates.rate(rule), rates.errors[rule]
        name = f"{label}: slope {found.slope:.2f} ± {found.slope_error:.2f}"
        spread = {"array": values.std(axis=0), "thickness": 1}
        line = {"color": AVOT_COLOURS[rule], "dash": "dot" if rule == "full" else "solid"}
        figure.add_scatter(
            x=rates.horizons, y=values.mean(axis=0), error_y=spread, name=name, line=line, mode="lines+markers"
        )
    top = max(float(values.mean(axis=0)[0]) for values in rates.errors.values())
    guide = top * (rates.horizons[0] / rates.horizons) ** 0.5
    figure.add_scatter(x=rates.horizons, y=guide, name="1 / sqrt(T)", line={"color": NULL, "dash": "dash"})
    figure.update_xaxes(type="log", tickvals=rates.horizons)
    figure.update_yaxes(type="log", exponentformat="power")
    return styled(figure, "Error after T rounds, step c / sqrt(T)", "rounds T", "mean error", height=460)


def benchmark(rows: Sequence[Mapping[str, Any]]) -> go.Figure:
    """Seconds over size, one line per solver and cost family, from the rows of `featalign bench transport`."""
    figure = go.Figure()
    solvers = sorted({row["solver"] for row in rows})
    dashes = dict(zip(sorted({row["family"] for row in rows}), ("solid", "dash", "dot", "dashdot")))
    for index, solver in enumerate(solvers):
        for family, dash in dashes.items():
            mine = sorted(
                (row["n"], row["seconds"]) for row in rows if (row["solver"], row["family"]) == (solver, family)
            )
            if mine:
                x, y = zip(*mine)
                line = {"color": CATEGORIES[index % len(CATEGORIES)], "dash": dash}
                figure.add_scatter(x=x, y=y, name=f"{solver}, {family}", mode="lines+markers", line=line)
    figure.update_xaxes(type="log")
    figure.update_yaxes(type="log", exponentformat="power")
    return styled(figure, "Seconds to solve", "units per client", "seconds", height=480)
