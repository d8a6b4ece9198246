"""Figures of the paper's experiments: accuracy over the abscissa, one panel per part."""

from __future__ import annotations

from typing import TYPE_CHECKING

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from featalign.plots.style import CATEGORIES, REFERENCE, styled

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = 2


def experiment_figure(frame: pd.DataFrame, title: str, axis: str) -> go.Figure:
    """One curve per row with 95 % intervals over seeds, one panel per part; rows without an abscissa as lines.

    `frame`: part, row, x, mean and interval (per cent), as `PaperResult.to_frame` gives it.
    """
    parts, rows = list(dict.fromkeys(frame["part"])), list(dict.fromkeys(frame["row"]))
    columns = min(COLUMNS, len(parts))
    lines = -(-len(parts) // columns)
    figure = make_subplots(lines, columns, subplot_titles=parts, shared_yaxes=True)
    shown: set[str] = set()
    for number, part in enumerate(parts):
        place = {"row": number // columns + 1, "col": number % columns + 1}
        for row in rows:
            chosen = frame[(frame["part"] == part) & (frame["row"] == row)]
            if chosen.empty:
                continue
            colour = CATEGORIES[rows.index(row) % len(CATEGORIES)]
            if chosen["x"].isna().all():
                label = {"annotation_text": row, "annotation_font_size": 10, "line_color": REFERENCE}
                figure.add_hline(y=float(chosen["mean"].iloc[0]), line_dash="dot", line_width=1, **label, **place)
                continue
            error = {"type": "data", "array": chosen["interval"], "thickness": 1}
            figure.add_scatter(
                x=chosen["x"], y=chosen["mean"], error_y=error, name=row, legendgroup=row, mode="lines+markers",
                line={"color": colour}, showlegend=row not in shown, **place,
            )  # fmt: skip
            shown.add(row)
    return styled(figure, title, axis, "test accuracy, %", 120 + 330 * lines)
