"""`diagnose` takes the user's own network; `run` one on disk or one that is trained on a shipped data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from featalign import options as typed
from featalign import storage
from featalign.clients.cohort import Cohort
from featalign.data.inputs import Inputs
from featalign.data.task import Task, labels_of
from featalign.dictionaries import Dictionary, as_basis
from featalign.dictionaries.preflight import inspect
from featalign.errors import FeatalignError, ProbeError, TaskError
from featalign.spaces.graph import Space
from featalign.spaces.naming import provenance
from featalign.spaces.splice import splice
from featalign.studies.diagnose.budget import Budget
from featalign.studies.diagnose.cards import Cards
from featalign.studies.diagnose.config import DiagnoseConfig, DiagnoseRunConfig
from featalign.studies.diagnose.controls import shuffled_weights
from featalign.studies.diagnose.layer import Layer
from featalign.studies.diagnose.places import check_bases, chosen_spaces
from featalign.studies.diagnose.result import DiagnoseResult
from featalign.studies.diagnose.rows import FunctionRow, LayerRow
from featalign.studies.diagnose.seen import embedded
from featalign.studies.diagnose.verdicts import DRAW, MODEL, WEIGHTS
from featalign.studies.features.reading import ROWS, Reading, read
from featalign.tracking import Log

FEWEST = 40  # inputs below which nothing is worth starting
SPLICED = 2000  # inputs that loss recovered is measured on


def diagnose(
    model: nn.Module,
    data: Any,
    task: Task | str | None = None,
    spaces: Sequence[str] | None = None,
    dictionaries: Mapping[str, Any] | None = None,
    partners: Mapping[str, nn.Module] | None = None,
    seeds: Sequence[int] = (0, 1),
    *,
    evaluate: Any = None,
    tokenizer: Any = None,
    class_names: Sequence[str] = (),
    title: str = "model",
    device: str | None = None,
    out: Path | str | None = None,
    overwrite: bool = False,
    progress: bool = True,
    log: Log | None = None,
    **settings: Any,
) -> DiagnoseResult:
    """Diagnose every hidden layer of a network: is it superposed, did training change it, what do units carry?

    Args:
        model: a trained module: classifier, language model, regressor, per-position model.
        data: inputs, or `(inputs, targets)`, whatever `data.Inputs` reads; dictionaries are trained on them.
        task: a `Task` or a registered name; None is read off outputs and targets.
        spaces: hidden spaces as tracing names them, hook names (`blocks.0.hook_resid_post`) or module paths
            (`fa.spaces.sites`); by default all spaces that can be read, and the places of `dictionaries`.
        dictionaries: bases to diagnose instead of the first seed's, by the same names (ours, folders, sae-lens's,
            `release/sae_id`).
        partners: other clients of the same architecture, whose matching features appear on the cards.
        seeds: of the dictionaries; two at least, so that their agreement is measured.
        evaluate: inputs (with targets) that the network was not trained on: everything is measured there. Without
            them a share `held_out` of the data is held out from the dictionaries; whether the network saw it is not
            known.
        tokenizer: for data given as strings; its `decode` puts text on the page.
        out: folder to write, page included.
        log: receives the metrics of the dictionaries as they are trained, `log(metrics, step)` (see `fa.tracking`).
        settings: other fields of `DiagnoseConfig`: width, k, steps, sweep_steps, samples, held_out, draws,
            firing_rate.

    Controls: the same network with the entries of each weight tensor shuffled (batch statistics estimated again), the
    same layer with each unit's samples shuffled, random directions. Raises `DictionaryError` in seconds where the data
    carry no dictionary as wide as a layer and says how much would; `SpaceMismatch` for an unknown space or a
    dictionary of another one; `ProbeError` for hardly any inputs.
    """
    given = {"spaces": tuple(spaces or ()), "seeds": tuple(seeds), "device": device, **settings}
    config = typed.read(DiagnoseConfig, given, "diagnose")
    with ExitStack() as stack:
        if out is not None:
            stack.enter_context(storage.claim(out, overwrite))
        source = _inputs(data, tokenizer).sample(config.samples)
        held = None if evaluate is None else _inputs(evaluate, tokenizer).sample(config.samples)
        facts = {"title": title, "network_saw_held_out": "no" if held is not None else "unknown"}
        result = _diagnose(
            [model, *(partners or {}).values()], [MODEL, *(partners or {})], source, held, task, class_names,
            dictionaries or {}, config, facts, tokenizer, progress, log,
        )  # fmt: skip
        if out is not None:
            result.save(out, overwrite)
    return result


def run(
    config: DiagnoseRunConfig, out: Path | str | None = None, overwrite: bool = False, progress: bool = True
) -> DiagnoseResult:
    """Diagnose a network on disk, the first client of a comparison, or one trained on a data set; write the folder.

    Raises `FolderExists` before any work, `CorruptFile` for unreadable weights and `ArchitectureMismatch` for weights
    of no known network.
    """
    from featalign.studies.diagnose.sources import load_source

    found = load_source(config, progress)
    folder = Path(out) if out else Path("reports") / f"diagnose-{found.name}"
    with storage.claim(folder, overwrite):
        source, held = found.data.sample(config.samples), found.held
        result = _diagnose(
            list(found.networks.values()), [MODEL, *list(found.networks)[1:]], source, held, found.task,
            found.class_names, {}, config, {"title": found.name, **found.facts}, found.tokenizer, progress,
        )  # fmt: skip
        result.save(folder, overwrite)
    return result


def _inputs(data: Any, tokenizer: Any) -> Inputs:
    """Inputs with targets where they bring any, held so that they can be cut."""
    found = Inputs.of(data, tokenizer=tokenizer, labelled=isinstance(data, (tuple, list)))
    return found.gathered()


def _diagnose(
    networks: Sequence[nn.Module],
    names: Sequence[str],
    source: Inputs,
    held: Inputs | None,
    task: Task | str | None,
    class_names: Sequence[str],
    dictionaries: Mapping[str, Any],
    config: DiagnoseConfig,
    facts: Mapping[str, Any],
    tokenizer: Any,
    progress: bool,
    log: Log | None = None,
) -> DiagnoseResult:
    from tqdm.auto import tqdm

    if len(source) < FEWEST:
        raise ProbeError(f"{len(source)} inputs; a diagnosis needs at least {FEWEST} to train and to hold out")
    looked = source if held is None else held
    source, held = _split(source, held, config)
    cohort, notes = _cohort(networks, names, source, held, task, class_names, tokenizer, config)
    bases = {name: as_basis(basis) for name, basis in dictionaries.items()}
    chosen, skipped = chosen_spaces(cohort, config.spaces, tuple(bases))
    check_bases(cohort, bases)
    budgets = _budgets(cohort, chosen, source, config, bases, skipped)
    every = {MODEL: cohort.modules[0]}
    for draw in range(config.draws):
        every[f"{DRAW}{draw + 1}" if draw else WEIGHTS] = shuffled_weights(cohort.modules[0], source, draw)
    every |= dict(zip(cohort.names[1:], cohort.modules[1:]))
    chosen = [space for space in chosen if space.name in budgets]
    sites = [space.after for space in chosen]
    train = read(every, source, sites)
    same = held is source
    seen = train if same else read(every, held, sites, seed=1)
    cards = Cards(cohort, looked, seen, tokenizer)
    frames: dict[str, Any] = {}
    shown: dict[str, Any] = {}
    for space in tqdm(chosen, disable=not progress, desc="layers"):
        layer = _layer(cohort, space, train, seen, held, budgets[space.name], config, same, bases.get(space.name), log)
        frames.setdefault("layers", []).append(layer.examine())
        for name, rows in layer.rows.items():
            frames.setdefault(name, []).extend(rows)
        frames.setdefault("function", []).extend(_function(cohort, space, layer, held))
        cards.add(space, layer)
        shown[space.name] = layer.bases[MODEL]
    frames.setdefault("layers", []).extend(skipped)
    known = {
        **facts,
        "versions": storage.versions(),
        "task": cohort.task.name,
        "inputs": len(source),
        "held_out": 0 if same else len(held),
        "inputs_of_cards": len(cards.inputs),
        "partners": list(names[1:]),
        "notes": list(dict.fromkeys([*notes, *cohort.notes])),
    }
    widgets = {"browser": cards.content()} if chosen else {}
    return DiagnoseResult(config, frames, known, {}, widgets, dictionaries=shown)


def _split(source: Inputs, held: Inputs | None, config: DiagnoseConfig) -> tuple[Inputs, Inputs]:
    """Inputs that dictionaries are trained on, and inputs that everything is measured on; one and the same for none."""
    if held is not None or config.held_out == 0:
        return source, source if held is None else held
    order = torch.randperm(len(source), generator=torch.Generator().manual_seed(0))
    count = max(8, round(config.held_out * len(source)))
    return source.subset(order[count:]), source.subset(order[:count])


def _cohort(
    networks: Sequence[nn.Module],
    names: Sequence[str],
    source: Inputs,
    held: Inputs,
    task: Task | str | None,
    class_names: Sequence[str],
    tokenizer: Any,
    config: DiagnoseConfig,
) -> tuple[Cohort, list[str]]:
    """The cohort, with evaluation data where the task finds something to compare outputs with."""
    options: dict[str, Any] = {
        "names": names, "class_names": class_names, "tokenizer": tokenizer, "device": config.device, "read_only": True,
    }  # fmt: skip
    example = held.example()
    if example.targets is None and example.tokens is None and task is None:
        return Cohort.of(networks, source, None, None, **options), ["no targets were given: nothing is scored"]
    try:
        return Cohort.of(networks, source, held, task, **options), []
    except TaskError as error:
        if task is not None or example.targets is not None:
            raise
        return Cohort.of(networks, source, None, "regression", **options), [f"nothing is scored: {error}"]


def _budgets(
    cohort: Cohort,
    chosen: Sequence[Space],
    source: Inputs,
    config: DiagnoseConfig,
    bases: Mapping[str, Any],
    skipped: list[LayerRow],
) -> dict[str, Budget]:
    """What each layer gets, before anything is read; layers that get nothing go to `skipped`, or raise if asked for."""
    found: dict[str, Budget] = {}
    failed: FeatalignError | None = None
    few = source.subset(slice(0, min(64, len(source))))
    sample = read({MODEL: cohort.modules[0]}, few, [space.after for space in chosen])
    if chosen and not any(sample.total.values()):
        raise ProbeError("attention_mask leaves no token of the inputs: there is nothing to diagnose; check the masks")
    for space in chosen:
        rows = min(ROWS, round(sample.total[space.after] / len(few) * len(source)))
        own = config
        if space.name in bases:
            own = replace(config, width=len(bases[space.name].atoms))
        try:
            if len(few) >= 32:
                _not_dead(space, sample.rows[MODEL][space.after])
            found[space.name] = Budget.of(space.name, space.size, rows, len(source), own)
        except FeatalignError as error:
            failed = error
            if config.spaces:
                raise
            skipped.append(LayerRow(space.name, space.size, note=str(error)))
    if failed is not None and not found:
        raise failed
    return found


def _not_dead(space: Space, rows: torch.Tensor) -> None:
    if len(rows) >= 32 and bool((rows == rows[0]).all()):
        inspect(rows, {"space": space.name})


def _layer(
    cohort: Cohort,
    space: Space,
    train: Reading,
    seen: Reading,
    held: Inputs,
    budget: Budget,
    config: DiagnoseConfig,
    same: bool,
    given: Any,
    log: Log | None = None,
) -> Layer:
    site = space.after
    origins = seen.origins[site]
    labels = labels_of(cohort.task, held)
    bare = replace(given, quality=None) if isinstance(given, Dictionary) else given  # measured here, on these data
    labels = labels[origins[:, 0]] if labels is not None and origins is not None else None
    return Layer(
        space.name, space.size, {name: rows[site] for name, rows in train.rows.items()},
        {name: rows[site] for name, rows in seen.rows.items()}, labels, embedded(held, origins), budget, config,
        "training" if same else "held-out", bare, provenance(cohort.modules[0], site, held), log,
    )  # fmt: skip


def _function(cohort: Cohort, space: Space, layer: Layer, held: Inputs) -> list[FunctionRow]:
    """What the network keeps when the layer is spliced, in the task's own loss and metrics."""
    if cohort.evaluation is None or not scored(cohort):
        return []
    basis = layer.bases[MODEL]
    inputs = held.sample(SPLICED)
    try:
        found = splice(
            cohort.modules[0], space.after, lambda a: basis.decode(basis.encode(a)), inputs, task=cohort.task
        )
    except FeatalignError as error:
        return [] if cohort.evaluation is None else _unspliced(layer, error)
    rows = [FunctionRow(space.name, "loss", found.loss, found.loss_spliced, found.loss_ablated)]
    for metric in cohort.task.metrics:
        if metric.name != "loss":
            every = (found.scores, found.scores_spliced, found.scores_ablated)
            rows.append(FunctionRow(space.name, metric.name, *(scores[metric.name] for scores in every)))
    rows.append(FunctionRow(space.name, "recovered", 1.0, found.recovered, 0.0))
    if found.kl == found.kl:
        rows.append(FunctionRow(space.name, "kl", 0.0, found.kl, float("nan")))
    return rows


def _unspliced(layer: Layer, error: FeatalignError) -> list[FunctionRow]:
    import logging

    logging.getLogger(__name__).warning("layer '%s' could not be spliced: %s", layer.name, error)
    return []


def scored(cohort: Cohort) -> bool:
    """Whether the evaluation data bring what outputs are compared with."""
    try:
        assert cohort.evaluation is not None
        cohort.task.targets(cohort.evaluation.example())
    except TaskError:
        return False
    return True
