"""How commands print: aligned tables, or JSON."""

from __future__ import annotations

from typing import Any

import typer


def print_rows(rows: list[dict[str, Any]], as_json: bool) -> None:
    """Print rows as JSON or as a table with four digits, a dash for what there is no figure of."""
    import json

    if as_json:
        typer.echo(json.dumps(rows, indent=2))
    else:
        print_table([{key: _shown(value) for key, value in row.items()} for row in rows])


def _shown(value: Any) -> Any:
    if value is None or value != value:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else value


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print dictionaries with the same keys as an aligned table; whole, however wide, where no terminal cuts it."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*rows[0])
    for row in rows:
        words = ("yes" if cell is True else "no" if cell is False else str(cell) for cell in row.values())
        table.add_row(*map(Text, words))  # as text: `pip install 'featalign[docs]'` is no markup
    console = Console()
    if not console.is_terminal:
        console.width = max(
            console.width, console.measure(table, options=console.options.update(max_width=10_000)).maximum
        )
    console.print(table)
