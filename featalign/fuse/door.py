"""`fa.fuse`: two or more networks, a probe, a method; one network back, in the layout that they came in."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from featalign import storage
from featalign.clients.client import Client
from featalign.clients.cohort import Cohort
from featalign.clients.evaluation import evaluate as score
from featalign.clients.weights import Layout, layout_of, read_module, read_tokenizer
from featalign.data.files import is_file_of_inputs, read_inputs
from featalign.data.inputs import Inputs
from featalign.data.partition import client_names
from featalign.data.task import TASKS, Task
from featalign.dictionaries.store import cached_dictionaries
from featalign.errors import BadOption, SpaceMismatch
from featalign.fuse.choose import AUTO, distances, nearest_client
from featalign.fuse.engine import solve
from featalign.fuse.methods import METHODS, require
from featalign.fuse.needs import TRAINED
from featalign.fuse.problem import FusionProblem, mixing_weights
from featalign.fuse.recommend import recommend
from featalign.fuse.result import FusionResult


def fuse(
    clients: Sequence[nn.Module | Client | Path | str],
    probe: Any,
    method: str | None = None,
    *,
    task: Task | str | None = None,
    evaluate: Any = None,
    mixing: float | Sequence[float] | None = None,
    reference: int | str = -1,
    refit: bool = True,
    repair: bool | None = None,
    head: str | None = None,
    ridge: float = 1e-2,
    head_ridge: float | None = None,
    steps: int = 0,
    data: Sequence[Any] | None = None,
    names: Sequence[str] | None = None,
    class_counts: Any = None,
    class_names: Sequence[str] = (),
    tokenizer: Any = None,
    canonical: bool = False,
    out: Path | str | None = None,
    overwrite: bool = False,
    seed: int = 0,
    base: nn.Module | Path | str | None = None,
    device: torch.device | str | None = None,
    **options: Any,
) -> FusionResult:
    """Fuse two or more networks of one architecture into one, without labels.

    Args:
        clients: modules, trained clients, or folders and safetensors files of weights (`clients.weights`).
        probe: unlabelled inputs that all clients may see: whatever `data.Inputs` reads, or a file (`data.files`).
        method: a registered name; None takes what the regime speaks for or `zip`, whichever ends nearer to the
            ensemble on held-out inputs of the probe, and `notes["recommended"]` says why.
        task: a `Task` or its name, which decides what a refitted readout aims at; None is read off outputs and the
            targets of `evaluate`, and without any is next-token or regression.
        evaluate: `(inputs, targets)` or a file with labels, for scores; never used to fit anything.
        mixing: weight of the first client (the others share the rest), or of every client; equal by default.
        reference: index or name of the client whose basis the others are moved into, the last one by default; "auto"
            takes the client whose outputs on the probe are nearest to those of all clients together.
        refit, repair, head, ridge, head_ridge, steps: as in `solve`.
        data: per client, the inputs on which its dictionaries are trained, for methods that need them; else the probe.
        names: of the clients; those of their folders, or A, B, ...
        class_counts: `[clients, classes]` label counts, if the server may know them.
        tokenizer: for strings; that of the reference's Hugging Face folder where not given.
        canonical: keep the network with its norms folded where the clients' layout cannot hold it.
        out: folder to save to (`FusionResult.save`), held from before any work; `overwrite` replaces a run there.
        base: the network that all clients were trained from, for methods that add up what each learned since.
        device: where everything runs.
        options: of the method.

    `notes["distance_to_ensemble"]` says how far every client and the fused network are from all clients together.
    Raises a `FeatalignError` of one line for anything that does not fit, before the work that it would spoil.
    """
    _check(method, task, options)
    with ExitStack() as stack:
        if out is not None:
            stack.enter_context(storage.claim(out, overwrite))
        modules, layouts, found = _networks(clients)
        names = tuple(names) if names is not None else found
        place = _reference(reference, names, len(modules))
        first = len(modules) - 1 if isinstance(place, str) else place
        tokenizer = _tokenizer(tokenizer, probe, layouts[first])
        cohort = Cohort.of(
            modules, _inputs(probe, tokenizer), _inputs(evaluate, tokenizer, labelled=True), task, data=data,
            names=names or None, class_counts=class_counts, class_names=class_names, tokenizer=tokenizer,
            reference=first, seed=seed, base=None if base is None else _networks([base, modules[0]])[0][0],
            device=device,
        )  # fmt: skip
        cohort.task.check_head(None if head == "none" else head)
        problem = _based(FusionProblem(cohort, _mixing(mixing, len(cohort)), first), place)
        notes: dict[str, Any] = {"cohort": list(cohort.notes)} if cohort.notes else {}
        settings: dict[str, Any] = dict(refit=refit, repair=repair, head=head, ridge=ridge, head_ridge=head_ridge)
        if method is None:
            problem, method, notes["recommended"] = recommend(problem, _with_dictionaries, settings)
        else:
            require(problem, method)
            problem = _with_dictionaries(problem, method)
        result = solve(problem, method, steps=steps, **settings, **options)
        result = _finished(problem, result, _deepest(modules, layouts)[problem.reference], canonical, notes)
        if out is not None:
            result.save(out, overwrite)
    return result


def _based(problem: FusionProblem, place: int | str) -> FusionProblem:
    """The problem in the basis of the nearest client where that is to be found out."""
    if place != AUTO:
        return problem
    nearest = nearest_client(problem.cohort, problem.mixing)
    return replace(problem, cohort=problem.cohort.based_on(nearest), reference=nearest)


def _finished(
    problem: FusionProblem, result: FusionResult, layout: Any, canonical: bool, notes: dict[str, Any]
) -> FusionResult:
    """The result in the clients' layout, scored, with what there is to say of it."""
    cohort = problem.cohort
    notes = {**notes, "distance_to_ensemble": distances(problem, result.module)}
    module, layout = _restored(cohort, result.module, layout, canonical, notes)
    return replace(
        result, module=module, notes={**notes, **result.notes}, clients=cohort.names, reference=problem.reference,
        mixing=problem.mixing, layout=layout, scores=_scores(cohort, module),
    )  # fmt: skip


def _check(method: str | None, task: Task | str | None, options: Mapping[str, Any]) -> None:
    """Names and options, before anything is read."""
    if isinstance(task, str):
        TASKS[task]
    if method is not None:
        METHODS[method].bind(options, method)
    elif options:
        raise BadOption(f"option '{next(iter(options))}' belongs to a method; name the method too")


def _networks(
    clients: Sequence[nn.Module | Client | Path | str],
) -> tuple[list[nn.Module], list[Layout], tuple[str, ...]]:
    """Modules, their layouts, and names where all came from folders of different names."""
    if isinstance(clients, (str, Path, nn.Module)) or not isinstance(clients, Sequence):
        raise BadOption(f"clients is a {type(clients).__name__}; pass a list of two or more modules or folders")
    if len(clients) < 2:
        raise BadOption(f"{len(clients)} client(s); fusing takes two or more modules or folders")
    modules, layouts, names = [], [], []
    for client in clients:
        if isinstance(client, Client):
            client = client.model
        if isinstance(client, nn.Module):
            module, layout = client, layout_of(client)
        elif isinstance(client, (str, Path)):
            module, layout = read_module(client)
            names.append(Path(client).expanduser().resolve().stem)
        else:
            raise BadOption(f"a client is a {type(client).__name__}; pass modules, or folders or files of weights")
        modules.append(module)
        layouts.append(layout)
    named = len(set(names)) == len(clients)
    return modules, layouts, tuple(names) if named else ()


def _deepest(modules: Sequence[nn.Module], layouts: Sequence[Layout]) -> list[Layout]:
    """Layouts of the fused network by reference: clients of unequal depth all get that of the deepest."""
    sizes = [len(module.state_dict()) for module in modules]
    whole = layouts[sizes.index(max(sizes))]
    return [layout if size == max(sizes) else whole for size, layout in zip(sizes, layouts)]


def _reference(reference: int | str, names: Sequence[str], count: int) -> int | str:
    """Its index, or "auto"."""
    if isinstance(reference, bool) or not isinstance(reference, (int, str)):
        raise BadOption(f"reference = {reference!r}; give a client's index or name")
    if isinstance(reference, str):
        known = tuple(names) or client_names(count)
        if reference not in known and reference == AUTO:
            return AUTO
        if reference not in known:
            raise BadOption(f"reference '{reference}' is no client; clients: {', '.join(known)}, or auto")
        return known.index(reference)
    if not -count <= reference < count:
        raise BadOption(f"reference {reference}: there are {count} clients")
    return reference % count


def _mixing(mixing: float | Sequence[float] | None, count: int) -> tuple[float, ...]:
    if mixing is None:
        return ()
    try:
        return tuple(map(float, mixing)) if isinstance(mixing, Sequence) else mixing_weights(float(mixing), count)
    except (TypeError, ValueError) as error:
        if isinstance(error, BadOption):
            raise
        raise BadOption(f"mixing = {mixing!r}; give the first client's weight, or one weight per client") from error


def _tokenizer(tokenizer: Any, probe: Any, layout: Layout) -> Any:
    """The one that was passed; for text, that of the reference's folder."""
    text = isinstance(probe, str) or (isinstance(probe, Sequence) and probe and isinstance(probe[0], str))
    text = Path(probe).suffix.lower() == ".txt" if is_file_of_inputs(probe) else text
    if tokenizer is None and text and layout.folder is not None:
        return read_tokenizer(layout.folder)
    return tokenizer


def _inputs(source: Any, tokenizer: Any, labelled: bool = False) -> Any:
    """Inputs from files; anything else as it is."""
    if source is None:
        return None
    if is_file_of_inputs(source):
        return read_inputs(source, tokenizer, labelled)
    return Inputs.of(source, tokenizer=tokenizer, labelled=labelled)


def _with_dictionaries(problem: FusionProblem, method: str) -> FusionProblem:
    """The problem with dictionaries or transcoders where the method needs them, trained now."""
    cohort = problem.cohort
    for need in METHODS[method].needs:
        if need in TRAINED:
            found = cached_dictionaries(
                cohort.modules, cohort.graphs, cohort.own, cohort.names, TRAINED[need], cohort.seed,
                keys=cohort.keys or None,
            )  # fmt: skip
            problem = replace(problem, **{need: found})  # type: ignore[arg-type]
    return problem


def _restored(
    cohort: Cohort, module: nn.Module, layout: Layout, canonical: bool, notes: dict[str, Any]
) -> tuple[nn.Module, Layout]:
    """The network in the layout that the clients came in, or (on request) as it is where that cannot hold it."""
    try:
        return cohort.restore(module), layout
    except SpaceMismatch as error:
        if not canonical:
            raise SpaceMismatch(f"{error} with canonical=True (--canonical), or choose another method") from error
        notes["canonical"] = str(error)
        warnings.warn(f"the fused network is kept in canonical form: {error}", stacklevel=4)
        return module, Layout()


def _scores(cohort: Cohort, fused: nn.Module) -> dict[str, dict[str, float]]:
    """Every metric of the clients and of the fused network, where there is something to evaluate on."""
    if cohort.evaluation is None:
        return {}
    rows = {**dict(zip(cohort.names, cohort.modules)), "fused": fused}
    return {name: score(module, cohort.evaluation, cohort.task) for name, module in rows.items()}
