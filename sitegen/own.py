"""Documents that live at the root of the repository, as pages."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
SOURCES = {"contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}


def pages() -> dict[str, str]:
    """Each with links to `docs/` as links within the site, and other files as code."""
    return {page: rewritten((ROOT / source).read_text(encoding="utf-8")) for page, source in SOURCES.items()}


def rewritten(text: str) -> str:
    """Relative links of the root, seen from `docs/`."""

    def moved(match: re.Match[str]) -> str:
        label, target = match[1], match[2]
        if "://" in target or target.startswith("#"):
            return match[0]
        if target.startswith("docs/"):
            return f"[{label}]({target.removeprefix('docs/')})"
        for page, source in SOURCES.items():
            if target.partition("#")[0] == source:
                return f"[{label}]({target.replace(source, page)})"
        return f"{label} (`{target}`)"

    return re.sub(r"\[([^\]]+)\]\(([^)]+)\)", moved, text)
