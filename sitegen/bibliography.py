"""`docs/bibliography.md`, one paper a line, and the citations of the docstrings that point to it."""

from __future__ import annotations

import functools
import re
from pathlib import Path

PAGE = Path(__file__).parent.parent / "docs" / "bibliography.md"
NAME = r"[A-Z][\w'’-]+"
CITATION = re.compile(rf"{NAME}(?:, {NAME})*(?:,? and {NAME}| et al\.)?,? \(?(?:19|20)\d\d(?!\d)")
ENTRY = re.compile(r"^\* <a id=\"([\w-]+)\"></a>\*\*(.+? \d{4})\.\*\*", re.M)


@functools.cache
def anchors() -> dict[tuple[str, str], str]:
    """`{(first author, year): anchor}` of the page."""
    found = ENTRY.findall(PAGE.read_text(encoding="utf-8"))
    return {(re.findall(NAME, cited)[0].lower(), cited[-4:]): anchor for anchor, cited in found}


def anchor_of(citation: str) -> str | None:
    """The entry of a citation, whether it names all authors, the first and others, or a title before them."""
    known, year = anchors(), re.findall(r"\d{4}", citation)[-1]
    authors = [name.lower() for name in re.findall(NAME, citation)]
    return next((known[author, year] for author in authors if (author, year) in known), None)


def cited_in(text: str) -> set[str]:
    """Citations of a text whose authors are words of names, not of sentences."""
    return {re.sub(r"\s+", " ", found.group()) for found in CITATION.finditer(re.sub(r"\s+", " ", text))}
