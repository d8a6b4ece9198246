"""The gallery: every script of `gallery/` with its thumbnail, its first docstring as the caption, and its code."""

from __future__ import annotations

import ast
from pathlib import Path

FOLDER = Path(__file__).parent.parent / "gallery"
HEAD = """# Gallery

Each picture is one short script that runs in seconds, offline, and in `make test`. `make gallery` draws all of them.
"""


def scripts() -> list[Path]:
    """In their order."""
    return sorted(path for path in FOLDER.glob("[0-9]*.py"))


def pages() -> dict[str, str]:
    if not scripts():
        return {}
    return {"gallery.md": HEAD + "".join(map(section, scripts()))}


def section(path: Path) -> str:
    source = path.read_text(encoding="utf-8")
    title, _, caption = (ast.get_docstring(ast.parse(source)) or "").partition("\n")
    code = source.split('"""', 2)[2].strip()
    return (
        f"\n## {title.rstrip('.')}\n\n![{title}](gallery/{path.stem}.webp)\n\n{caption.strip()}\n\n"
        f"```python\n{code}\n```\n"
    )
