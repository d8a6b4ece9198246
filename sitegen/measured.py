"""The results page, from `docs/measured/*.json`: each holds what one command printed, with the words around it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent.parent / "docs" / "measured"
EXPERIMENTS = FOLDER.parent / "results"  # of `featalign bench paper`
HEAD = """# Measured

Every table is a JSON file in `docs/measured/`, written by the command above it. To measure one anew, run the command
with `--json` and put what it prints into `rows`. Nothing is chosen on test data; every rival gets the same samples.
"""


def pages() -> dict[str, str]:
    """`measured.md`, and `fusion.md` from the experiments' files where nobody has written that page."""
    found = {"measured.md": HEAD + "".join(section(read(path)) for path in sorted(FOLDER.glob("*.json")))}
    if any(EXPERIMENTS.glob("*.json")) and not (FOLDER.parent / "fusion.md").exists():
        from featalign.bench.paper.report import page

        found["fusion.md"] = page(EXPERIMENTS).replace(str(EXPERIMENTS), "docs/results")
    return found


def read(path: Path) -> dict[str, Any]:
    """`title, command, about, rows` (a list of records), and `columns`: those shown, with their headings."""
    return dict(json.loads(path.read_text(encoding="utf-8")))


def section(found: dict[str, Any]) -> str:
    columns: dict[str, str] = found.get("columns") or {key: key.replace("_", " ") for key in found["rows"][0]}
    lines = ["", f"## {found['title']}", "", f"`{found['command']}`", "", found["about"], ""]
    lines += ["| " + " | ".join(columns.values()) + " |", "|" + "---|" * len(columns)]
    for row in found["rows"]:
        lines.append("| " + " | ".join(shown(row.get(key)) for key in columns) + " |")
    if found.get("conclusion"):
        lines += ["", found["conclusion"]]
    return "\n".join(lines) + "\n"


def shown(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return str(value).replace("|", "\\|")


def method_rows(name: str) -> list[tuple[str, str, dict[str, Any]]]:
    """Rows of any table whose `method` is this one: `(title, command, row)`."""
    found = []
    for path in sorted(FOLDER.glob("*.json")):
        table = read(path)
        found += [(table["title"], table["command"], row) for row in table["rows"] if row.get("method") == name]
    return found
