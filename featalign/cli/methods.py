"""`featalign methods`: every registered fusion method, what it needs, and its options."""

from __future__ import annotations

import typer

from featalign.cli.output import print_rows


def methods(as_json: bool = typer.Option(False, "--json", help="Print JSON.")) -> None:
    """Every registered fusion method: what it does, what it needs, its options with their defaults."""
    from featalign.fuse import METHODS

    rows = [
        {
            "method": name,
            "basis": METHODS[name].basis,
            "refit": METHODS[name].refit,
            "needs": ", ".join(METHODS[name].needs),
            "options": ", ".join(f"{key}={default}" for key, (_, default) in METHODS[name].options.items()),
            "what it does": METHODS[name].summary,
        }
        for name in METHODS
    ]
    print_rows(rows, as_json)
