"""`featalign toy`: superposition where the features are known."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import typer

from featalign.cli.output import print_table

toy = typer.Typer(help="Toy models of superposition, where the features are known.", no_args_is_help=True)


@toy.command("compare")
def toy_compare(
    source: str = typer.Option("features", "--data", help="features (drawn) or words (of Shakespeare, as features)."),
    n: int = typer.Option(0, "--features", "-n", help="Known features.", show_default="24; 256 words"),
    m: int = typer.Option(0, "--units", "-m", help="Hidden units.", show_default="8; 32 for words"),
    density: float = typer.Option(0.04, help="Probability that a feature is active (features only)."),
    clients: int = typer.Option(2, help="Number of clients."),
    shared: int = typer.Option(None, help="Features that all clients have; the others are dealt out. Default: all."),
    shared_init: bool = typer.Option(False, "--shared-init", help="Clients start from equal weights."),
    hidden: str = typer.Option("none", help="Hidden nonlinearity: none or relu."),
    split: str = typer.Option("seeds", help="Words: clients differ by 'seeds' only, or see their own 'books'."),
    width: int = typer.Option(None, help="Units of the fused model.  [default: as the clients]"),
    seeds: int = typer.Option(5, help="Repetitions, each with clients of its own."),
    steps: int = typer.Option(3000, help="Training steps of every client."),
    method: list[str] = typer.Option(
        None, "--method", help="Name of a method; repeat to choose several.  [default: all that toys allow]"
    ),
    texts: Path = typer.Option(None, metavar="FOLDER", help="Plain-text files to take words from."),
    out: Path = typer.Option(None, metavar="DIR", help="Write the run folder, with its page, here."),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace an existing run folder."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Fuse toy clients with known features in every basis, against joint training and the truth."""
    from featalign.storage import claim
    from featalign.studies.toy import ToySettings, compare

    options: dict[str, Any] = {
        "data": source, "n": n, "m": m, "density": density, "clients": clients, "shared": shared, "hidden": hidden,
        "independent": not shared_init, "split": split, "width": width, "seeds": seeds, "steps": steps,
        "methods": tuple(method or ()),
    }  # fmt: skip
    settings = ToySettings(**options)
    with claim(out, overwrite) if out is not None else nullcontext():
        result = compare(settings, texts=texts, progress=not as_json)
        if out is not None:
            result.save(out, overwrite)
    if as_json:
        typer.echo(result.to_json())
        return
    frame = result.to_frame().reset_index().astype(object)
    print_table(
        [
            {str(key): "" if value != value else _shown(value) for key, value in row.items()}
            for row in frame.to_dict(orient="records")
        ]
    )
    for row in result.frames["methods"].query("not available").itertuples():
        typer.echo(f"{row.method} left out: {row.reason}")
    typer.echo(result.summary())
    if out is not None:
        typer.echo(f"page: {out}/report.html")


def _shown(value: object) -> object:
    return f"{value:.4f}" if isinstance(value, float) else value


@toy.command("sweep")
def toy_sweep(
    quick: bool = typer.Option(False, "--quick", help="Ten small settings instead of 36."),
    figure: Path = typer.Option(None, metavar="HTML", help="Write the map here."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Where the feature basis wins, ties and loses over density and size, and whether the regime knew before."""
    import json

    from featalign.storage import plain
    from featalign.studies.toy import sweep

    found = sweep(quick=quick, progress=not as_json)
    if figure is not None:
        from featalign.plots.toy import outcome_map

        outcome_map(found.to_frame()).write_html(figure, include_plotlyjs=True)
    if as_json:
        typer.echo(json.dumps(plain(found.to_dict()), indent=2))
        return
    keys = ("n", "m", "density", "ot-acts", "procrustes", "feature-reencode", "outcome", "regime", "agrees")
    rows = found.to_frame()[list(keys)].to_dict(orient="records")
    print_table([{str(key): _shown(value) for key, value in row.items()} for row in rows])
    typer.echo(f"the regime's recommendation is best or within 5 % of it in {found.agreement:.0%} of settings")


@toy.command("curve")
def toy_curve(
    kind: str = typer.Argument(
        "explained", help="explained (over m/n), capacity (over fused width) or words (over m)."
    ),
    figure: Path = typer.Option(None, metavar="HTML", help="Write the figure here."),
) -> None:
    """A measured curve with its prediction or ceiling beside it, as JSON."""
    import json

    from featalign.storage import plain
    from featalign.studies.toy import CURVES

    found = CURVES[kind]()
    if figure is not None:
        found.figure.write_html(figure, include_plotlyjs=True)
    typer.echo(json.dumps(plain(found.to_dict()), indent=2))
