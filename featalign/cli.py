"""The command line: thin commands that parse options, call a pipeline and print what it returns."""

from __future__ import annotations

import sys

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
