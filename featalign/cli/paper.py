"""`featalign bench paper`: OTFusion's experiments, each one command, and the page made of their files."""

from __future__ import annotations

from pathlib import Path

import typer

from featalign.errors import BadOption


def paper(
    name: str = typer.Argument(
        ..., help="transfer, splits, many, probe, sinkhorn, widths, pruning, finetune, distill; or report."
    ),
    folder: Path = typer.Argument(None, metavar="[DIR]", help="Of report: the folder of the results."),
    seeds: int = typer.Option(5, min=1, help="Repetitions, each with networks of its own."),
    dataset: str = typer.Option("mnist", help="mnist, fashion-mnist or digits."),
    probe: int = typer.Option(200, help="Unlabelled training inputs for matching."),
    augmented: int = typer.Option(10_000, help="Inputs made of the probe for the refit; 0 takes the probe as it is."),
    epochs: int = typer.Option(None, help="Of training the networks.  [default: the paper's 10]"),
    option: list[str] = typer.Option(
        None, metavar="NAME=VALUE", help="Of the experiment, such as points=5; repeat for several."
    ),
    out: Path = typer.Option(None, metavar="DIR", help="Write JSON and figure here, anew after every seed."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
    quiet: bool = typer.Option(False, "--quiet", help="No progress bars."),
) -> None:
    """Singh and Jaggi's experiments (2020) , ours beside the published values; report prints the page."""
    import json

    from featalign import storage
    from featalign.bench.paper import EXPERIMENTS, Lab, run
    from featalign.bench.paper.report import page, section
    from featalign.cli.fuse import pair
    from featalign.options import bind_options

    if name == "report":
        if folder is None:
            raise BadOption("report wants the folder of the results: featalign bench paper report DIR")
        typer.echo(page(folder))
        return
    words = dict(map(pair, option or []))
    options = bind_options(EXPERIMENTS[name].function, words, f"experiment '{name}'", text=True)
    lab = Lab(dataset, probe, augmented, epochs, progress=not quiet)
    shown = "".join(f" --option {word}" for word in option or [])
    shown += "" if epochs is None else f" --epochs {epochs}"
    shown += "" if probe == 200 else f" --probe {probe}"
    shown += "" if augmented == 10_000 else f" --augmented {augmented}"
    command = f"featalign bench paper {name} --dataset {dataset}{shown}"
    result = run(name, lab, seeds, options, out, command)
    typer.echo(json.dumps(storage.plain(result.to_dict()), indent=2) if as_json else section(result))
