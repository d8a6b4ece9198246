"""The page kit: one self-contained HTML file from sections, tables, figures and widgets, no network.

Everything that is not `Markup` is escaped by the template engine; rich text comes from `rich` alone. Data travels in
JSON blocks without `<`, `>` and `&`. The page's policy runs nothing but the two scripts of the kit, by their hashes;
a page whose data lie in files beside it lets the kit load these scripts as well.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
from markupsafe import Markup

from featalign import storage
from featalign.errors import CorruptFile, FeatalignError

if TYPE_CHECKING:
    import plotly.graph_objects as go

PARTS = ("kit.js", "features-data.js", "features-list.js", "features-card.js", "features-map.js", "features.js")
_WORDS = re.compile(r"[^\W\d_]{3}|[^\W\d_]+\W+[^\W\d_]")  # what a cell of words starts with, and no number or unit does
_UNSAFE = {ord(letter): f"\\u{ord(letter):04x}" for letter in "<>&\u2028\u2029"}


@dataclass
class Section:
    """A titled part of a page; every method adds a part and returns the section. Plain text is escaped.

    >>> Section("Layers").text("Widths of every layer.").table(["layer", "units"], [["fc1", 64]])
    """

    title: str
    parts: list[Markup] = field(default_factory=list)
    beside: bool = False  # whether a widget of it reads files beside the page

    def text(self, text: str, note: bool = False) -> Section:
        """Add a paragraph of plain text, or of `rich` text; a note is set smaller."""
        return self.add(paragraph(text, note))

    def verdict(self, text: str) -> Section:
        """Add a sentence that the section comes down to, set apart."""
        return self.add(_part("paragraph", text, "verdict"))

    def code(self, text: str) -> Section:
        """Add lines of code or commands."""
        return self.add(_part("code", text))

    def table(
        self, head: Sequence[str], rows: Sequence[Sequence[Any]], classes: Sequence[str] = (), wide: bool = False
    ) -> Section:
        """Add a table, columns of words to the left; `classes`: a CSS class per row, `wide`: the last column wraps."""
        kinds = list(classes) or [""] * len(rows)
        words = [any(_WORDS.match(str(row[k])) for row in rows) for k in range(len(head))]
        return self.add(
            _part(
                "table", list(zip(head, words)), [(kind, list(zip(row, words))) for kind, row in zip(kinds, rows)], wide
            )
        )

    def figure(self, figure: go.Figure) -> Section:
        """Add a plotly figure; it fills the width and follows resizing."""
        from featalign.plots.style import without_tags

        return self.add(_part("figure", json_text(without_tags(json.loads(str(figure.to_json()))))))

    def widget(self, name: str, identifier: str, content: Any) -> Section:
        """Add a widget of `page.js` by name; it finds its JSON `content` beside the element `identifier`."""
        self.beside = self.beside or "files" in content
        return self.add(_part("widget", name, identifier, json_text(content)))

    def add(self, part: Markup) -> Section:
        """Add markup made by a template or by `rich`; raises `TypeError` for plain strings."""
        if not isinstance(part, Markup):
            raise TypeError(f"a part of a page is Markup, got {type(part).__name__}; use text() or rich()")
        self.parts.append(part)
        return self


def rich(markup: str, *values: Any, **named: Any) -> Markup:
    """Constant HTML with escaped values in its braces: `rich("space <b>{}</b>", name)`."""
    return Markup(markup).format(*values, **named)


def coded(text: str) -> Markup:
    """Plain text whose parts between backticks are set as code, as docstrings have them."""
    parts = text.split("`")
    if len(parts) % 2 == 0:  # a backtick without its partner
        return Markup.escape(text)
    return Markup("").join(
        rich("<code>{}</code>", part) if k % 2 else Markup.escape(part) for k, part in enumerate(parts)
    )


def paragraph(text: str, note: bool = False) -> Markup:
    """A paragraph of plain or `rich` text; a note is set smaller."""
    return _part("paragraph", text, "note" if note else "")


def json_text(content: Any) -> Markup:
    """JSON that no parser of HTML or JavaScript can read as anything else; NaN becomes null."""
    text = json.dumps(storage.plain(content), separators=(",", ":"), allow_nan=False)
    return Markup(text.translate(_UNSAFE))


def page(title: str, lead: Sequence[str], sections: Sequence[Section]) -> str:
    """The complete HTML text; `lead` are the paragraphs of its head, plain text or what `paragraph` returns."""
    from plotly.offline import get_plotlyjs

    plotly, script = get_plotlyjs(), script_of("page.js")
    return _templates().get_template("page.html").render(
        title=title,
        lead=[part if isinstance(part, Markup) else paragraph(part) for part in lead],
        sections=sections,
        sources=Markup(" ").join(Markup("'sha256-{}'").format(_digest(code)) for code in (plotly, script)),
        more=Markup("'strict-dynamic'" if any(section.beside for section in sections) else ""),
        style=Markup(styles("page.css", "features.css")),
        plotly=Markup(plotly),
        script=Markup(script),
    )  # fmt: skip


def write_page(path: Path | str, text: str) -> Path:
    """Write a page as UTF-8; letters that are no Unicode become references. Raises `StorageError`."""
    return storage.write_bytes(path, text.encode("utf-8", "xmlcharrefreplace"))


@contextmanager
def drawing(folder: Path | str) -> Iterator[None]:
    """Inside, results that a page cannot be drawn from raise `CorruptFile` in one line with their folder."""
    try:
        yield
    except FeatalignError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        raise CorruptFile(f"the results in {str(folder)!r} are not what this version writes ({reason})") from error


def _part(macro: str, *values: Any) -> Markup:
    return Markup(getattr(_templates().get_template("parts.html").module, macro)(*values))


@functools.cache
def _templates() -> jinja2.Environment:
    loader = jinja2.PackageLoader("featalign.report")
    return jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )


def script_of(last: str) -> str:
    """The script of the kit: its parts in order, and `last`, what a page or a notebook does with them."""
    code = "".join(map(_asset, (*PARTS, last)))
    return f"(function () {{\n{code}}})();" if last == "page.js" else code


def styles(*names: str) -> str:
    """Style sheets of the kit, with the colours that they share."""
    return "".join(map(_asset, ("colours.css", *names)))


def _asset(name: str) -> str:
    """A CSS or JavaScript file that ships beside this module."""
    return files("featalign.report").joinpath(name).read_text(encoding="utf-8")


def _digest(code: str) -> str:
    return base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
