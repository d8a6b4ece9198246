"""`featalign bench`: every claim against the library people would use instead, in one run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from featalign.cli.output import print_rows, print_table
from featalign.cli.paper import paper
from featalign.errors import BadOption

bench = typer.Typer(help="Side-by-side benchmarks against the library people would use instead.", no_args_is_help=True)
bench.command("paper")(paper)


OPTION: Any = typer.Option(
    None, "--option", metavar="METHOD.NAME=VALUE", help="Of a method, such as zip.lean=auto; repeat for several."
)


@bench.command("sae")
def bench_sae(
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
    quick: bool = typer.Option(False, "--quick", help="Only 64 -> 256, and two architectures."),
    only: str = typer.Option(None, help="One table: speed or recovery."),
) -> None:
    """Seconds to one explained variance, and recovery of a planted dictionary, against sae-lens's trainer."""
    import json

    from featalign.bench.sae import ARCHITECTURES, SHAPES, recovery, speed

    tables = {
        "speed": lambda: speed(SHAPES[:1] if quick else SHAPES),
        "recovery": lambda: recovery(ARCHITECTURES[:2] if quick else ARCHITECTURES),
    }
    if only is not None and only not in tables:
        raise BadOption(f"no table '{only}'; choices: {', '.join(tables)}")
    found = {name: run() for name, run in tables.items() if only in (None, name)}
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    for rows in found.values():
        print_table([{key: f"{v:.3g}" if isinstance(v, float) else v for key, v in row.items()} for row in rows])


@bench.command("transport")
def bench_transport(
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
    quick: bool = typer.Option(False, "--quick", help="Sizes up to 1000 only, no sparse problems."),
    only: str = typer.Option(None, help="One table: exact, entropic or sparse."),
    limit: float = typer.Option(600.0, metavar="SECONDS", help="Stop a solver of the sparse table after so long."),
    figure: Path = typer.Option(None, metavar="HTML", help="Write the figure of seconds over size here."),
) -> None:
    """Exact, entropic and sparse transport against scipy and POT in the same run."""
    import json

    from featalign.bench.transport import table_rows, transport_benchmark

    tables = transport_benchmark(quick, only, limit=limit)
    if figure is not None:
        from featalign.plots.transport import benchmark

        benchmark(tables["exact"]).write_html(figure, include_plotlyjs=True)
    if as_json:
        typer.echo(json.dumps(tables, indent=2))
    else:
        print_table(list(table_rows(tables)))


@bench.command("synthetic")
def bench_synthetic(
    features: int = typer.Option(2048, help="True features of the synthetic model."),
    units: int = typer.Option(128, help="Dimensions that they share."),
    width: int = typer.Option(1024, help="Latents of the dictionaries."),
    k: int = typer.Option(12, help="Active latents per sample."),
    samples: int = typer.Option(100_000, help="Activations that both libraries train on."),
    steps: int = typer.Option(1500, help="Training steps of every dictionary."),
    architecture: list[str] = typer.Option(["topk", "batchtopk"], metavar="NAME", help="Repeat for several."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Known features of sae-lens's synthetic models (as in SynthSAEBench), both trainers, sae-lens as the judge."""
    from featalign.bench.synthetic import synthetic_benchmark

    rows = synthetic_benchmark(features, units, width, k, samples, steps, architectures=architecture)
    print_rows(rows, as_json)


@bench.command("toy")
def bench_toy(
    steps: int = typer.Option(3000, help="Training steps of every model."),
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
    print_rows([asdict(row) for row in rows], as_json)


@bench.command("vision")
def bench_vision(
    model: list[str] = typer.Option(["vgg11", "resnet20"], metavar="NAME", help="Architectures."),
    seeds: int = typer.Option(1, help="Pairs of networks per architecture."),
    probe: int = typer.Option(400, help="Unlabelled pictures for matching, repair and refit."),
    method: list[str] = typer.Option(None, "--method", help="Methods to run.  [default: all without dictionaries]"),
    option: list[str] = OPTION,
    model_option: list[str] = typer.Option(
        None, metavar="NAME=VALUE", help="Of the networks, such as layer_norm=true; repeat for several."
    ),
    epochs: int = typer.Option(None, help="Of training the networks.  [default: vgg11 14, resnet20 9, vit 12]"),
    curve: bool = typer.Option(False, "--curve", help="Also score four other mixing weights."),
    figure: Path = typer.Option(None, metavar="HTML", help="Write the figure here."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
    quiet: bool = typer.Option(False, "--quiet", help="No progress bars."),
) -> None:
    """CIFAR-10 with VGG11, ResNet20 or a ViT: what one-shot fusion keeps of two networks."""
    import json

    from featalign.bench.vision import vision
    from featalign.errors import BadOption
    from featalign.studies.compare.config import method_options, model_texts

    shares = (0.1, 0.3, 0.7, 0.9) if curve else ()
    options = method_options(option or ())
    if model_option and len(model) > 1:
        raise BadOption(f"--model-option {model_option[0]} with models {', '.join(model)}; name one --model")
    result = vision(
        model, method or None, seeds, probe, curve=shares, epochs=epochs, options=options, progress=not quiet,
        **(model_texts(model[0], model_option) if model_option else {}),
    )  # fmt: skip
    if figure is not None:
        from featalign.plots.networks import fusion_table

        fusion_table(result.to_frame()).write_html(figure)
    if as_json:
        typer.echo(json.dumps(result.to_dict(), indent=2))
    else:
        print_rows(result.to_frame().reset_index().to_dict("records"), False)


@bench.command("barrier")
def bench_barrier(
    pair: str = typer.Option("editions", help="editions (modern against First Folio spelling) or seeds."),
    steps: int = typer.Option(1000, help="Training steps of each transformer."),
    method: list[str] = typer.Option(None, metavar="NAME", help="Registered methods.  [default: a selection]"),
    option: list[str] = OPTION,
    probe: int = typer.Option(64, help="Unlabelled windows of training text for matching and refit."),
    descent: int = typer.Option(0, help="Steps of gradient on the probe after every refit."),
    augmented: int = typer.Option(0, help="Windows that the refit sees, spliced from the probe; 0 takes the probe."),
    points: int = typer.Option(11, help="Mixing weights, both ends among them."),
    model_option: list[str] = typer.Option(
        None, metavar="NAME=VALUE", help="Of the transformers: width, depth, heads, hidden, context; repeat."
    ),
    figure: Path = typer.Option(None, metavar="HTML", help="Write the curves here."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
    quiet: bool = typer.Option(False, "--quiet", help="No progress bars."),
) -> None:
    """Loss between two character transformers, by the basis in which their weights are interpolated."""
    from featalign.bench.barrier import METHODS, barrier, barriers, curves, parents
    from featalign.studies.compare.config import method_options, model_texts

    result = barrier(
        pair, method or METHODS, steps, points, probe, descent, augmented, method_options(option or ()),
        progress=not quiet,
        **model_texts("decoder", model_option or ()),
    )  # fmt: skip
    if figure is not None:
        from featalign.plots.networks import barrier_curves

        title = f"Loss between two character transformers ({pair})"
        barrier_curves(curves(result), parents(result), title).write_html(figure)
    rows = [{str(key): value for key, value in row.items()} for row in barriers(result).to_dict("records")]
    print_rows(rows, as_json)
    if not as_json:
        typer.echo("parents {:.3f} and {:.3f} nats".format(*parents(result)))


@bench.command("match")
def bench_match(
    latents: int = typer.Option(2048, help="Latents of either client."),
    samples: int = typer.Option(100_000, help="Rows of shared inputs."),
    active: int = typer.Option(32, help="Latents active per row."),
    shuffled: bool = typer.Option(True, help="Also match after shuffling: how many pairs are left."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Planted sparse codes of two clients: time, memory, and what is found of pairs, splits and own features."""
    import json
    from dataclasses import asdict

    from featalign.bench.match import match_row, table_rows

    row = match_row(latents, samples, active, shuffled)
    if as_json:
        typer.echo(json.dumps(asdict(row), indent=2))
    else:
        print_table(list(table_rows([row])))


@bench.command("scale")
def bench_scale(
    case: list[str] = typer.Option(None, metavar="NAME", help="deep or clients.  [default: both]"),
    clients: list[int] = typer.Option([2, 4, 8, 16], help="Numbers of clients; repeat."),
    method: str = typer.Option("zip", help="Registered method; with its refit."),
    positions: int = typer.Option(60_000, help="Positions that the deep networks read."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
    quiet: bool = typer.Option(False, "--quiet", help="No progress bars."),
) -> None:
    """What fusion costs as networks grow deep and clients many: seconds and memory."""
    from featalign.bench.scale import CASES, scale

    result = scale(case or CASES, clients, method, positions, not quiet)
    print_rows(result.to_dict()["rows"], as_json)


@bench.command("fusion")
def bench_fusion(
    pair: list[str] = typer.Option(
        None,
        metavar="NAME",
        help="mnist-mlp, mnist-depths, digits-resnet20, digits-vit, digits-encoder, ...  [default: all]",
    ),
    method: list[str] = typer.Option(
        None, metavar="NAME", help="Registered methods.  [default: all that need no dictionary]"
    ),
    seeds: int = typer.Option(1, help="Repetitions; seed s trains pairs of its own."),
    figure: Path = typer.Option(None, metavar="HTML", help="Write the figure here."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
    quiet: bool = typer.Option(False, "--quiet", help="No progress bars."),
) -> None:
    """Every fusion method on seven small pairs of networks: score, seconds, memory, before and after the refit."""
    import json

    from featalign.bench.fusion import fusion

    if seeds < 1:
        raise BadOption(f"--seeds {seeds}; give at least 1")
    result = fusion(pair or (), method or (), seeds, progress=not quiet)
    if figure is not None:
        from featalign.plots.fusion import methods_table

        methods_table(result.to_frame()).write_html(figure)
    if as_json:
        typer.echo(json.dumps(result.to_dict(), indent=2))
    else:
        print_rows(
            [{str(key): value for key, value in row.items()} for row in result.to_frame().to_dict("records")], False
        )
        for name, reasons in result.left_out.items():
            for left, why in reasons.items():
                typer.echo(f"left out of {name}: {left} ({why})")


@bench.command("repack")
def bench_repack(
    networks: list[str] = typer.Option(None, metavar="NAME", help="words or characters.  [default: both]"),
    width: list[int] = typer.Option(None, help="Of the linear space; repeat for several.  [default: 8, 16, 32, 48]"),
    seeds: int = typer.Option(2, help="Pairs of networks for each width."),
    steps: int = typer.Option(1000, help="Of training each network."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
    quiet: bool = typer.Option(False, "--quiet", help="No progress bars."),
) -> None:
    """Superposed linear spaces projected, re-packed or rotated: loss, and what the regime said beforehand."""
    from featalign.bench.repack import repack, to_json

    print_rows(to_json(repack(networks or (), width or (), seeds, steps, not quiet)), as_json)


@bench.command("frontier")
def bench_frontier(
    dataset: str = typer.Option("mnist", help="Data set of classes; mnist and digits have been measured."),
    clients: int = typer.Option(2, help="Number of clients; the first holds a label alone."),
    k: list[float] = typer.Option(
        None, metavar="K", help="Active latents per sample of the transcoders; repeat.  [default: 6, 16, 40]"
    ),
    width: list[float] = typer.Option(
        None, help="Of the fused network, times the clients'; repeat.  [default: 1, 1.5, 2, 3]"
    ),
    seeds: int = typer.Option(2, help="Repetitions, of split, initialisation, training and probe."),
    figure: Path = typer.Option(None, metavar="HTML", help="Write the figure here."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON, a row per network and seed."),
    quiet: bool = typer.Option(False, "--quiet", help="No progress bars."),
) -> None:
    """Accuracy against monosemanticity of fused units: neurons, transcoder latents or both, at several widths."""
    import json

    from featalign.bench.frontier import frontier

    result = frontier(dataset, clients, k or (), width or (), seeds, not quiet)
    frame = result.to_frame()
    if figure is not None:
        from featalign.plots.fusion import frontier as draw

        draw(frame).write_html(figure, include_plotlyjs=True)
    if as_json:
        typer.echo(json.dumps(result.to_dict(), indent=2))
    else:
        print_rows([{str(key): value for key, value in row.items()} for row in frame.to_dict("records")], False)


@bench.command("modes")
def bench_modes(
    dataset: str = typer.Option(
        "digits", help="Data set that is dealt to the clients; shakespeare: a client per edition, and a transformer."
    ),
    model: str = typer.Option("mlp", help="Family of the clients' network."),
    model_option: list[str] = typer.Option(
        None, metavar="NAME=VALUE", help="Of the family, such as width=0.25; repeat for several."
    ),
    clients: int = typer.Option(10, help="Number of clients."),
    split: str = typer.Option("dirichlet", help="Partition scheme."),
    alpha: float = typer.Option(0.1, help="Concentration of the Dirichlet split."),
    rounds: int = typer.Option(20, help="Rounds from a shared start."),
    epochs: int = typer.Option(10, help="Of local training before one-shot fusion."),
    samples: int = typer.Option(0, help="Training samples that are dealt, from the first on; 0 for all."),
    seeds: int = typer.Option(1, help="Repetitions, of split, initialisation and training."),
    only: list[str] = typer.Option(None, metavar="MODE", help="Modes.  [default: all]"),
    noise: list[float] = typer.Option([0.001, 0.01, 0.1], metavar="SIGMA", help="On moments; 0 for none."),
    figure: Path = typer.Option(None, metavar="HTML", help="Write the figure of the cost of noise here."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON, a row per seed."),
    quiet: bool = typer.Option(False, "--quiet", help="No progress bars."),
) -> None:
    """What each way of aggregating asks of clients (weights, moments, sums, a probe), and what it reaches."""
    import pandas as pd

    from featalign.bench.modes import modes, summary
    from featalign.bench.pairs import language_federation
    from featalign.studies.compare.config import model_texts
    from featalign.studies.federate import FederateConfig

    if seeds < 1:
        raise BadOption(f"--seeds {seeds}; give at least 1")
    sigmas = [sigma for sigma in noise if sigma]
    shape = model_texts(model, model_option or [])
    frames = []
    for seed in range(seeds):
        if dataset == "shakespeare":
            config = FederateConfig(clients=2, rounds=rounds, seed=seed)
            frames.append(modes(config, epochs, sigmas, only or (), language_federation(seed), not quiet))
        else:
            config = FederateConfig(
                dataset=dataset, model=model, model_options=shape, clients=clients, split=split, alpha=alpha,
                rounds=rounds, samples=samples, seed=seed,
            )  # fmt: skip
            frames.append(modes(config, epochs, sigmas, only or (), progress=not quiet))
    frame = pd.concat(frames, ignore_index=True)
    short = summary(frame)
    if figure is not None:
        from featalign.plots.federated import noise_cost

        noise_cost(short).write_html(figure, include_plotlyjs=True)
    shown = frame if as_json else short
    rows = shown.astype(object).where(shown.notna(), None).to_dict("records")
    print_rows([{str(key): value for key, value in row.items()} for row in rows], as_json)
