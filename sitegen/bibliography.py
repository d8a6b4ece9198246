"""`docs/bibliography.md`, one paper a line, and the citations of the docstrings that point to it."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parent.parent / "docs" / "bibliography.md"
NAME = r"[A-Z][\w'’-]+"
CITATION = re.compile(rf"{NAME}(?:, {NAME})*(?:,? and {NAME}| et al\.)?,? \(?(?:19|20)\d\d(?!\d)")
ENTRY = re.compile(r"^\* <a id=\"([\w-]+)\"></a>\*\*(.+? \d{4})\.\*\*", re.M)


def key(citation: str) -> str:
    """A citation in one spelling: `Rahimi, Kalogerias (2025` is `rahimi and kalogerias 2025`."""
    words = re.sub(r"[()]", "", citation).replace(", and ", " and ").replace(",", "")
    return " ".join(word for word in words.lower().split() if word != "and")


def anchors() -> dict[str, str]:
    """`{citation in one spelling: anchor}` of the page."""
    return {key(cited): anchor for anchor, cited in ENTRY.findall(PAGE.read_text(encoding="utf-8"))}


def cited_in(text: str) -> set[str]:
    """Citations of a text whose authors are words of names, not of sentences."""
    return {re.sub(r"\s+", " ", found.group()) for found in CITATION.finditer(re.sub(r"\s+", " ", text))}
