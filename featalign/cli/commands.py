"""The top-level commands and the entry point, which turns errors into one line and exit status 2."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any, TextIO

import typer
from typer.core import TyperGroup

from featalign import __version__
from featalign.cli.bench import bench
from featalign.cli.cache import cache
from featalign.cli.data import data
from featalign.cli.doctor import doctor
from featalign.cli.federate import federate
from featalign.cli.fuse import fuse
from featalign.cli.match import match
from featalign.cli.methods import methods
from featalign.cli.output import print_table
from featalign.cli.toy import toy
from featalign.errors import BadOption, FeatalignError


class VerbsFirst(TyperGroup):
    """The five verbs first, then the rest in the order of registration."""

    def list_commands(self, ctx: Any) -> list[str]:
        verbs = ("compare", "match", "diagnose", "fuse", "federate")
        return [*verbs, *(name for name in super().list_commands(ctx) if name not in verbs)]


app = typer.Typer(
    name="featalign",
    cls=VerbsFirst,
    help="In which basis do separately trained networks agree, and what does averaging in the wrong one cost?",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
INTERRUPTED = 130  # exit status after Ctrl-C


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit()


@app.callback()
def featalign(
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error."),
    modules: list[str] = typer.Option(
        None, "--import", metavar="MODULE", help="Module with methods of your own, imported first; repeat for several."
    ),
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Show the version."),
) -> None:
    """Options of every command; `main` reads `--debug` wherever it stands."""
    for name in modules or ():
        _import(name)


def _import(name: str) -> None:
    """Import a module, also from the current folder; raises `BadOption` where that fails."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        importlib.import_module(name.removesuffix(".py"))
    except FeatalignError:
        raise
    except Exception as error:
        raise BadOption(f"--import {name}: {type(error).__name__}: {error}; give the name of a module") from error


app.add_typer(bench, name="bench")
app.add_typer(toy, name="toy")
app.add_typer(data, name="data")
app.add_typer(federate, name="federate")
app.add_typer(cache, name="cache")
app.command("doctor")(doctor)
app.command("fuse")(fuse)
app.command("match")(match)
app.command("methods")(methods)


@app.command("compare")
def compare(
    dataset: str = typer.Option(None, help="Data set: `featalign data list`.  [default: digits]"),
    folder: str = typer.Option(
        None, "--from", metavar="FOLDER", help="Folder with your own copy of the data set's files."
    ),
    task: str = typer.Option(
        None, help="What the clients are for: classification, regression, ...  [default: the data set's]"
    ),
    split: str = typer.Option(
        None,
        help="How data are dealt out: special-label, iid, dirichlet, client-dirichlet, shards, quantity.  "
        "[default: special-label]",
    ),
    special: int = typer.Option(None, help="The label that only client A holds.  [default: 4]"),
    alpha: float = typer.Option(None, help="Concentration of Dirichlet splits.  [default: 0.5]"),
    clients: int = typer.Option(None, help="Number of clients.  [default: 2]"),
    seeds: int = typer.Option(
        None,
        metavar="COUNT",
        help="Repetitions, each with clients of its own; mean and spread are shown.  [default: 3]",
    ),
    model: str = typer.Option(None, help="Family: mlp, vgg11, resnet18, resnet20, vit, encoder, ...  [default: mlp]"),
    model_option: list[str] = typer.Option(
        None, metavar="NAME=VALUE", help="Of the family, such as hidden=128,64; repeat for several."
    ),
    epochs: int = typer.Option(None, help="Passes of client training.  [default: the family's recipe]"),
    probe: int = typer.Option(None, help="Number of unlabelled inputs that all clients share.  [default: 400]"),
    augment: str = typer.Option(
        None, help="Extension of the probe: blend, shift-mix, gaussian, splice, none.  [default: blend]"
    ),
    mixing: float = typer.Option(
        None, help="Weight of the first client, 0 to 1; the others share the rest.  [default: equal weights]"
    ),
    methods: str = typer.Option(None, help="Names separated by commas.  [default: those that the clients allow]"),
    option: list[str] = typer.Option(
        None, metavar="METHOD.NAME=VALUE", help="Of a method, such as ot-acts.cost=correlation; repeat for several."
    ),
    class_counts: bool = typer.Option(
        None, "--class-counts", help="Let the server know label counts and weigh clients' outputs by them."
    ),
    curve: int = typer.Option(None, help="Points of the mixing-weight curve, 0 for none.  [default: 11]"),
    device: str = typer.Option(None, help="Where networks run: cpu, cuda.  [default: cpu]"),
    config: Path = typer.Option(None, metavar="TOML", help="Start from the config.toml of a run."),
    out: Path = typer.Option(None, metavar="DIR", help="Write everything below DIR.  [default: reports/ and saes/]"),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace an existing run folder."),
    quiet: bool = typer.Option(False, "--quiet", help="No progress bars."),
) -> None:
    """Train clients, align them neuron by neuron and feature by feature, fuse, and write a report page."""
    from featalign.studies.compare.config import RunConfig, method_options, model_texts

    given = {
        "dataset": dataset, "folder": folder, "task": task, "split": split, "special": special, "alpha": alpha,
        "clients": clients, "seeds": seeds, "model": model, "epochs": epochs, "probe": probe, "augment": augment,
        "mixing": mixing, "class_counts": class_counts, "curve": curve, "device": device,
        "methods": tuple(methods.replace(" ", "").split(",")) if methods else None,
    }  # fmt: skip
    start = RunConfig.from_toml(config) if config else RunConfig()
    values: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if option:
        values["options"] = {**start.options, **method_options(option)}
    if model_option:
        values["model_options"] = {**start.model_options, **model_texts(model or start.model, model_option)}
    chosen = start.changed(**values)
    from featalign.studies.compare.console import print_result
    from featalign.studies.compare.run import run

    print_result(run(chosen, out, overwrite, progress=not quiet))


@app.command("avot")
def avot(
    p: Path = typer.Option(None, "--p", metavar="CSV", help="Importance: columns user,p; p sums to 1."),
    subsets: Path = typer.Option(
        None, "--subsets", metavar="CSV", help="Law of presence: columns users (separated by spaces), q; q sums to 1."
    ),
    relax: float = typer.Option(1.0, help="From 0 (uniform mean of who is present) to 1 (unbiased)."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Can the users who show up deliver the importance asked for? Aggregation weights, feasibility, the worst set."""
    import json

    from featalign.storage import plain

    if p is None or subsets is None:
        raise BadOption("give both --p and --subsets")
    from featalign.transport.avot_files import avot_report

    report = plain(avot_report(p, subsets, relax))
    if as_json:
        typer.echo(json.dumps(report, indent=2))
        return
    weights = report.pop("weights")
    print_table([{"": name.replace("_", " "), "value": value} for name, value in report.items() if name != "phat"])
    print_table(
        [
            {"present": " ".join(row["users"]), "weights": " ".join(f"{w:.4g}" for w in row["weights"])}
            for row in weights
        ]
    )


@app.command("diagnose")
def diagnose_command(
    model: Path = typer.Argument(
        None, metavar="[FOLDER|MODEL.safetensors]", help="Folder of a client or of transformers, or weights of an MLP."
    ),
    run_folder: Path = typer.Option(None, "--run", metavar="DIR", help="Diagnose the first client of a compare run."),
    dataset: str = typer.Option(None, help="Where inputs and targets come from.  [default: digits]"),
    texts: Path = typer.Option(None, metavar="FILE", help="Inputs of a language model, one text per line."),
    spaces: str = typer.Option(
        None, help="Hidden spaces, hook names or module paths, by commas.  [default: all spaces]"
    ),
    width: int = typer.Option(None, help="Latents of the dictionaries.  [default: by size, capped by the data]"),
    seeds: int = typer.Option(
        None,
        metavar="COUNT",
        help="Dictionaries per layer, trained from as many seeds; 2 or more show whether they agree.  [default: 2]",
    ),
    device: str = typer.Option(None, help="Where the network runs: cpu, cuda.  [default: cpu]"),
    out: Path = typer.Option(None, metavar="DIR", help="Folder of the page.  [default: reports/diagnose-NAME]"),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace an existing folder."),
    quiet: bool = typer.Option(False, "--quiet", help="No progress bars."),
) -> None:
    """Is a network superposed, did training change it, what do its units carry? Writes a self-contained page."""
    from featalign.studies.diagnose.config import DiagnoseRunConfig
    from featalign.studies.diagnose.run import run

    given = {
        "model": None if model is None else str(model), "run": None if run_folder is None else str(run_folder),
        "dataset": dataset, "texts": None if texts is None else str(texts), "width": width, "device": device,
        "spaces": tuple(spaces.replace(" ", "").split(",")) if spaces else None,
        "seeds": tuple(range(seeds)) if seeds is not None else None,
    }  # fmt: skip
    values: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    found = run(DiagnoseRunConfig(**values), out, overwrite, progress=not quiet)
    for line in found.lines():
        typer.echo(line)
    typer.echo(f"page: {found.folder}/report.html")


def _note(message: Warning | str, *_where: Any, **_more: Any) -> None:
    """Warnings as one line each, without the place in the code they come from."""
    typer.secho(f"note: {message}", fg=typer.colors.YELLOW, err=True)


def main() -> None:
    """Entry point: a `FeatalignError` or an `OSError` is one line on standard error and exit status 2.

    `--debug` anywhere on the command line, or FEATALIGN_DEBUG=1, shows the traceback instead.
    """
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1 or os.environ.get("FEATALIGN_DEBUG", "0") not in {"", "0"}
    warnings.showwarning = _note
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a locale without the letters of a table still shows the table
    try:
        status = _run(arguments)
    except (FeatalignError, OSError) as error:
        if debug:
            traceback.print_exc()
        _complain(error)
        status = 2
    sys.exit(status)


def _run(arguments: list[str]) -> int:
    """Run a command; its output is flushed here, where a full disk or a closed pipe can still be told."""
    try:
        app(args=arguments)
    except SystemExit as stop:
        if isinstance(stop.__context__, OSError):  # a closed pipe, which typer leaves in silence
            raise stop.__context__ from None
        if stop.code == INTERRUPTED:
            typer.secho("interrupted; finished clients are cached, run the same command to go on", err=True)
        sys.stdout.flush()
        return int(stop.code or 0)
    sys.stdout.flush()
    return 0


def _complain(error: Exception) -> None:
    """One line for an error, even when standard output or standard error is gone."""
    if isinstance(error, OSError):
        _close(sys.stdout)
        place = f"'{error.filename}': " if error.filename else ""
        text = f"OSError: {place}{error.strerror or error}; --debug shows where"
    else:
        text = f"{type(error).__name__}: {error}"
    try:
        typer.secho(" ".join(text.split()), fg=typer.colors.RED, err=True)
    except OSError:
        _close(sys.stderr)


def _close(stream: TextIO) -> None:
    """Send what a stream still holds nowhere, so that Python does not try again when it ends."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
