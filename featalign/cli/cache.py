"""`featalign cache`: how much is kept, and being rid of it."""

from __future__ import annotations

import typer

from featalign.cli.output import print_rows
from featalign.storage.cache import cache_folder
from featalign.storage.inventory import FETCHED, clear_cache, inventory

cache = typer.Typer(help="Clients, dictionaries and data sets kept between runs.", invoke_without_command=True)
HOLDS = {
    FETCHED: "data sets that were fetched",
    "clients": "trained clients",
    "dictionaries": "trained dictionaries",
    "toy": "toy models",
    "decoders": "transformers of the benchmarks",
}


@cache.callback()
def show(
    context: typer.Context,
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Size of the cache by kind; FEATALIGN_CACHE names another folder."""
    if context.invoked_subcommand is not None:
        return
    kinds = inventory()
    if as_json:
        print_rows([{"kind": kept.kind, "entries": kept.entries, "bytes": kept.size} for kept in kinds], True)
        return
    typer.echo(f"{cache_folder()}: {in_words(sum(kept.size for kept in kinds))}")
    if kinds:
        rows = [
            {
                "kind": kept.kind,
                "entries": kept.entries,
                "size": in_words(kept.size),
                "what": HOLDS.get(kept.kind, ""),
            }
            for kept in kinds
        ]
        print_rows(rows, False)


@cache.command("clear")
def clear(
    kind: str = typer.Argument(None, metavar="[KIND]", help="One kind; data sets go only when named."),
    yes: bool = typer.Option(False, "--yes", "-y", help="Do not ask."),
) -> None:
    """Delete what can be computed again, or one kind, after asking."""
    what = f"all '{kind}'" if kind else "everything but fetched data sets"
    if not yes and not typer.confirm(f"delete {what} in {cache_folder()}?"):
        typer.echo("nothing was deleted")
        return
    typer.echo(f"{in_words(clear_cache(kind))} set free")


def in_words(size: float) -> str:
    """Bytes as people write them."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
