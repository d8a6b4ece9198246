"""The published JSON schemas, one page each: frames, columns, types and what they hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent.parent / "docs" / "schemas"


def pages() -> dict[str, str]:
    """`schemas/NAME.md` for every schema in `docs/schemas`."""
    return {f"schemas/{path.stem}.md": page(path) for path in sorted(FOLDER.glob("*.json"))}


def page(path: Path) -> str:
    schema = json.loads(path.read_text(encoding="utf-8"))
    lines = [f"# `results.json` of `{path.stem}`", ""]
    lines += [schema.get("description", ""), "", f"The file itself: [{path.name}]({path.name})."]
    lines.append("Read one back with `fa.load(folder)`; see [what a run folder holds](../results.md).")
    frames = schema.get("properties", {}).get("frames", {}).get("properties", {})
    for name, frame in frames.items():
        record = resolved(schema, frame.get("items", {}))
        lines += ["", f"## `{name}`", "", frame.get("description") or record.get("description", ""), ""]
        lines += ["| column | type | holds |", "|---|---|---|"]
        for column, kind in record.get("properties", {}).items():
            lines.append(f"| `{column}` | {types(kind)} | {cell(kind.get('description', ''))} |")
    return "\n".join(lines) + "\n"


def resolved(schema: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    """What a `$ref` within the file points to."""
    if "$ref" not in part:
        return part
    found: Any = schema
    for key in part["$ref"].removeprefix("#/").split("/"):
        found = found[key]
    return dict(found)


def types(kind: dict[str, Any]) -> str:
    if "anyOf" in kind:
        return " or ".join(types(each) for each in kind["anyOf"])
    found = kind.get("type", "any")
    return " or ".join(found) if isinstance(found, list) else str(found)


def cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
