"""The page shell that every report shares: one self-contained HTML file, no network, plotly.js inlined once."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass
class Section:
    """A titled part of a page; `parts` are pieces of HTML in order."""

    title: str
    parts: list[str] = field(default_factory=list)

    def text(self, paragraph: str) -> Section:
        """Add a paragraph of HTML."""
        self.parts.append(f"<p>{paragraph}</p>")
        return self

    def figure(self, figure: go.Figure) -> Section:
        """Add a plotly figure; it fills the width and follows resizing."""
        options = {"displaylogo": False, "responsive": True}
        self.parts.append(figure.to_html(full_html=False, include_plotlyjs=False, config=options))
        return self

    def table(
        self, head: Sequence[str], rows: Sequence[Sequence[Any]], classes: Sequence[str] = (), wide: bool = False
    ) -> Section:
        """Add a table; cells are escaped, `classes` names a CSS class per row, `wide` lets the last column wrap."""
        names = list(classes) or [""] * len(rows)
        header = "".join(f"<th>{html.escape(str(cell))}</th>" for cell in head)
        body = "".join(
            f'<tr class="{name}">' + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>"
            for name, row in zip(names, rows)
        )
        kind = ' class="wide"' if wide else ""
        inner = f"<thead><tr>{header}</tr></thead><tbody>{body}</tbody>"
        self.parts.append(f'<div class="scroll"><table{kind}>{inner}</table></div>')
        return self

    def raw(self, content: str) -> Section:
        """Add HTML as it is."""
        self.parts.append(content)
        return self


def asset(name: str) -> str:
    """A CSS or JavaScript file that ships beside this module."""
    return files("featalign.report").joinpath(name).read_text()


def data_block(identifier: str, content: Any) -> str:
    """JSON inside the page, safe against closing tags; scripts read it by its id."""
    text = json.dumps(content, separators=(",", ":"), allow_nan=False).replace("</", "<\\/")
    return f'<script type="application/json" id="{identifier}">{text}</script>'


def page(title: str, lead: str, sections: Sequence[Section], scripts: Sequence[str] = ()) -> str:
    """The complete HTML text; `scripts` are names of assets run after the body."""
    from plotly.offline import get_plotlyjs

    links = "".join(f'<a href="#s{i}">{html.escape(section.title)}</a>' for i, section in enumerate(sections))
    body = "".join(
        f'<section id="s{i}"><h2>{html.escape(section.title)}</h2>{"".join(section.parts)}</section>'
        for i, section in enumerate(sections)
    )
    code = "".join(f"<script>{asset(name)}</script>" for name in scripts)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{asset("page.css")}</style>'
        f'<script id="plotlyjs">{get_plotlyjs()}</script></head><body><header><h1>{html.escape(title)}</h1>'
        f'<div class="lead">{lead}</div><nav>{links}</nav></header><main>{body}</main>{code}</body></html>'
    )
