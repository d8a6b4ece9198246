"""`featalign fuse`: two or more networks in folders, one network out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from featalign.errors import BadOption

if TYPE_CHECKING:
    from featalign.fuse import FusionResult


def fuse(
    clients: list[Path] = typer.Argument(
        ..., metavar="A B ...", help="Folders or safetensors files of weights, one per network."
    ),
    probe: str = typer.Option(
        ...,
        metavar="FILE|DATASET",
        help="Unlabelled inputs that all clients may see: npz, npy, safetensors, txt, or a shipped data set.",
    ),
    method: str = typer.Option(None, help="Name of a fusion method.  [default: what the regime speaks for, or zip]"),
    out: Path = typer.Option(..., metavar="DIR", help="Folder of the fused network."),
    option: list[str] = typer.Option(
        None, metavar="NAME=VALUE", help="Of the method, such as cost=correlation; repeat for several."
    ),
    mixing: str = typer.Option(
        None, metavar="WEIGHTS", help="Weight of the first client, or of all: 0.2,0.3,0.5.  [default: equal]"
    ),
    reference: str = typer.Option("-1", help="Client whose basis the others are moved into: index, name or auto."),
    refit: bool = typer.Option(True, help="Regress every layer on the probe, in closed form and without labels."),
    repair: bool = typer.Option(
        None, help="Restore the statistics that averaging shrinks.  [default: for ten affine layers or more]"
    ),
    head: str = typer.Option(None, help="Readout target of the refit; none keeps the rule's.  [default: the task's]"),
    steps: int = typer.Option(0, help="Gradient steps towards the clients' ensemble after the refit, on the probe."),
    task: str = typer.Option(None, help="classification, next-token, ...  [default: read off outputs and targets]"),
    evaluate: str = typer.Option(None, metavar="FILE|DATASET", help="Inputs with labels, for scores."),
    tokenizer: Path = typer.Option(
        None, metavar="DIR", help="Folder of the tokenizer of a txt probe.  [default: the reference's]"
    ),
    samples: int = typer.Option(400, help="Number of inputs drawn where the probe is a shipped data set."),
    canonical: bool = typer.Option(False, "--canonical", help="Keep norms folded where the layout cannot hold them."),
    seed: int = typer.Option(0, help="Of whatever is drawn."),
    base: Path = typer.Option(
        None, metavar="DIR", help="Weights that all networks were trained from, for ties and task-arithmetic."
    ),
    device: str = typer.Option(None, help="Where networks run: cpu, cuda.  [default: cpu]"),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace an existing run folder."),
    as_json: bool = typer.Option(False, "--json", help="Print what fusion.json holds."),
) -> None:
    """Fuse networks of one architecture into one, saved in the layout that they came in."""
    from featalign import fuse as package
    from featalign.data.task import TASKS
    from featalign.options import bind_options

    if task is not None:
        TASKS[task]
    options: dict[str, Any] = {}
    if method is not None:
        entry = package.METHODS[method]
        options = bind_options(entry.function, dict(map(pair, option or [])), f"method '{method}'", text=True)
    elif option:
        raise BadOption(f"--option {option[0]} belongs to a method; give --method too")
    result = package.fuse(
        clients,
        _source(probe, samples, seed, False),
        method,
        task=task,
        evaluate=None if evaluate is None else _source(evaluate, samples, seed, True),
        mixing=_weights(mixing),
        reference=int(reference) if reference.lstrip("-").isdigit() else reference,
        refit=refit,
        repair=repair,
        head=head,
        steps=steps,
        tokenizer=None if tokenizer is None else _tokenizer(tokenizer),
        canonical=canonical,
        out=out,
        overwrite=overwrite,
        seed=seed,
        base=base,
        device=device,
        **options,
    )
    _print(result, out, as_json)


def _print(result: FusionResult, out: Path, as_json: bool) -> None:
    import json

    from featalign.cli.output import print_rows
    from featalign.storage import plain

    if as_json:
        typer.echo(json.dumps(plain(result.to_dict()), indent=2))
        return
    if "recommended" in result.notes:
        typer.echo(f"method: {result.notes['recommended']}")
    if result.scores:
        print_rows([{"": name, **found} for name, found in result.scores.items()], False)
    for note in result.notes.get("cohort", ()):
        typer.echo(f"note: {note}")
    typer.echo(f"{result.name} of {', '.join(result.clients)} in {result.seconds:.1f} s: {out}")


def pair(text: str) -> tuple[str, str]:
    """The two sides of NAME=VALUE."""
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise BadOption(f"--option {text}; write it as NAME=VALUE")
    return name.strip(), value.strip()


def _weights(text: str | None) -> float | list[float] | None:
    if text is None:
        return None
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        raise BadOption(f"--mixing {text}; give the first client's weight, or all of them: 0.2,0.3,0.5") from None
    return found[0] if len(found) == 1 else found


def _source(text: str, samples: int, seed: int, labelled: bool) -> Any:
    """A file of inputs, or a sample of a shipped data set (its test split where labels are wanted)."""
    from featalign import data

    if text not in data.datasets:
        from featalign.data.files import SUFFIXES

        if Path(text).suffix.lower() not in SUFFIXES:
            raise BadOption(
                f"'{text}' is neither a file that ends in {', '.join(SUFFIXES)} nor a data set "
                f"({', '.join(data.datasets)})"
            )
        return Path(text)
    found = data.load(text)
    return (found.test_inputs, found.test_labels) if labelled else data.probe(found, samples, seed)


def _tokenizer(folder: Path) -> Any:
    from featalign.clients.weights import read_tokenizer

    return read_tokenizer(folder)
