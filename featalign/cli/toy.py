"""`featalign toy`: superposition where the features are known."""

from __future__ import annotations

from pathlib import Path

import typer

from featalign.cli.output import print_table

toy = typer.Typer(help="Toy models of superposition, where the features are known.", no_args_is_help=True)


@toy.command("compare")
def toy_compare(
    source: str = typer.Option("features", "--data", help="features or words."),
    n: int = typer.Option(0, "--features", "-n", help="Known features.", show_default="24; 256 words"),
    m: int = typer.Option(0, "--units", "-m", help="Hidden units.", show_default="8; 32 for words"),
    density: float = typer.Option(0.04, help="Probability that a feature is active."),
    clients: int = typer.Option(2),
    shared: int = typer.Option(None, help="Features that all clients have; the others are dealt out. Default: all."),
    shared_init: bool = typer.Option(False, "--shared-init", help="Clients start from equal weights."),
    hidden: str = typer.Option("none", help="Hidden nonlinearity: none or relu."),
    split: str = typer.Option("seeds", help="Words: clients differ by 'seeds' only, or see their own 'books'."),
    width: int = typer.Option(None, help="Units of the fused model."),
    seeds: int = typer.Option(5),
    method: list[str] = typer.Option(None, "--method", help="Repeat to choose methods."),
    texts: Path = typer.Option(None, metavar="FOLDER", help="Plain-text files to take words from."),
    figure: Path = typer.Option(None, metavar="HTML", help="Write the figures here."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Fuse toy clients with known features in every basis, against joint training and the truth."""
    import json

    from featalign.storage import plain
    from featalign.toy_fusion.compare import ToySettings, compare

    settings = ToySettings(
        data=source, n=n, m=m, density=density, clients=clients, shared=shared, independent=not shared_init,
        hidden=hidden, split=split, width=width, seeds=seeds, methods=tuple(method) if method else None,
    )  # fmt: skip
    result = compare(settings, texts=texts, progress=not as_json)
    if figure is not None:
        from featalign.plots.toy import page

        page(result, figure)
    if as_json:
        typer.echo(json.dumps(plain(result.to_dict()), indent=2))
        return
    print_table([{key: f"{v:.4f}" if isinstance(v, float) else v for key, v in row.items()} for row in result.rows()])
    typer.echo(result.summary())


@toy.command("sweep")
def toy_sweep(
    quick: bool = typer.Option(False, "--quick", help="Ten small settings instead of 36."),
    figure: Path = typer.Option(None, metavar="HTML", help="Write the map here."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Where the feature basis wins, ties and loses over density and size, and whether the regime knew before."""
    import json

    from featalign.storage import plain
    from featalign.toy_fusion.sweep import sweep

    found = sweep(quick=quick, progress=not as_json)
    if figure is not None:
        from featalign.plots.toy import outcome_map

        outcome_map(found.to_frame()).write_html(figure, include_plotlyjs=True)
    if as_json:
        typer.echo(json.dumps(plain(found.to_dict()), indent=2))
        return
    keys = ("n", "m", "density", "neuron-ot", "procrustes", "feature-ot", "outcome", "regime", "agrees")
    rows = found.to_frame()[list(keys)].to_dict(orient="records")
    print_table([{str(k): f"{v:.4f}" if isinstance(v, float) else v for k, v in row.items()} for row in rows])
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
    from featalign.toy_fusion.curves import CURVES

    found = CURVES[kind]()
    if figure is not None:
        from featalign.plots import toy as plots

        getattr(plots, f"{kind}_curve")(found).write_html(figure, include_plotlyjs=True)
    typer.echo(json.dumps(plain(found.to_dict()), indent=2))
