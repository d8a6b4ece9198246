"""`compare` takes the user's own modules; `run` trains clients on a shipped data set, repeats over seeds, saves.

Both build one `Cohort` per repetition and hand it to the same `examine`; neither holds mathematics.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from featalign import options as typed
from featalign import storage
from featalign.clients import Client, models, train_clients
from featalign.clients.cohort import Cohort
from featalign.data import load, partition
from featalign.data.inputs import Inputs
from featalign.data.partition import check_scheme
from featalign.data.probe import augment as extend
from featalign.data.probe import check_recipe
from featalign.data.probe import probe as draw
from featalign.data.task import TASKS, Task
from featalign.dictionaries.architectures import ARCHITECTURES
from featalign.errors import BadOption, ProbeError
from featalign.fuse import METHODS
from featalign.studies.compare.config import CompareConfig, RunConfig, model_options
from featalign.studies.compare.examine import examine
from featalign.studies.compare.result import CompareResult
from featalign.studies.compare.rows import ClientRow
from featalign.studies.compare.trial import Trial

if TYPE_CHECKING:
    from featalign.data.datasets import Dataset


def compare(
    modules: Sequence[nn.Module],
    probe: Any,
    evaluate: Any = None,
    task: Task | str | None = None,
    methods: Sequence[str] | None = None,
    mixing: float | None = None,
    data: Sequence[Any] | None = None,
    augment: str = "none",
    *,
    names: Sequence[str] | None = None,
    class_names: Sequence[str] = (),
    class_counts: Any = None,
    tokenizer: Any = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    seed: int = 0,
    base: nn.Module | None = None,
    device: str | None = None,
    out: Path | str | None = None,
    overwrite: bool = False,
    progress: bool = True,
    **settings: Any,
) -> CompareResult:
    """Compare two or more trained modules of one architecture: align, fuse, measure, explain.

    Args:
        modules: classifiers, language models, regressors, per-position models; the last one is the reference.
        probe: unlabelled inputs that all clients may see, whatever `data.Inputs` reads.
        evaluate: `(inputs, targets)`, or the inputs alone where they are their own targets; never used to fit anything.
        task: a `Task` or a registered name; None is read off outputs and targets.
        methods: registered names; None means those that the modules allow and that are on by default.
        mixing: weight of the first client, the others sharing the rest; None means equal weights.
        data: per client, the inputs on which its dictionaries are trained; the probe when not given.
        augment: recipe of the probe's extension: blend or shift-mix for images, gaussian, splice for tokens, or none.
        names: of the clients; A, B, ... when not given.
        class_counts: `[clients, classes]` label counts, if the server may know them.
        tokenizer: for probes given as strings; its `decode` puts text on the page.
        base: the network that all clients were trained from, for methods that add up what each learned since.
        options: by method, such as `{"ot-acts": {"cost": "correlation"}}`.
        out: folder to write, page included; `overwrite` replaces a run that is there.
        settings: other fields of `CompareConfig`: head, ridge, curve, augmented, expansion, k, evidence, architecture.

    Raises a `FeatalignError` of one line: bad modules, probes, targets and options are named before any work.
    """
    chosen = methods if isinstance(methods, str) else tuple(methods or ())
    given = {"methods": chosen, "options": dict(options or {}), "mixing": mixing, "augment": augment}
    config = typed.read(CompareConfig, {**given, "device": device, **settings}, "compare")
    _check(config)
    with ExitStack() as stack:
        if out is not None:
            stack.enter_context(storage.claim(out, overwrite))
        with _Progress(1, progress) as bar:
            inputs = Inputs.of(probe, tokenizer=tokenizer)
            cohort = Cohort.of(
                modules, inputs, evaluate, task, data=data, names=names, class_counts=class_counts,
                class_names=class_names, tokenizer=tokenizer, refit_inputs=_extended(inputs, config, seed), seed=seed,
                base=base, device=device,
            )  # fmt: skip
            trial = examine(cohort, config, bar.stage(seed), tokenizer)
        clients = [ClientRow(seed, name) for name in cohort.names]
        facts = {"probe": len(inputs), "parameters": sum(p.numel() for p in modules[-1].parameters())}
        result = CompareResult.gather(config, [trial], clients, facts)
        if out is not None:
            result.save(out, overwrite)
    return result


def run(
    config: RunConfig, out: Path | str | None = None, overwrite: bool = False, progress: bool = True
) -> CompareResult:
    """Train (or load) clients on a data set, compare them over seeds and write the run folder.

    Everything goes below `out`; without it, results and page to `reports/<run>/` and dictionaries to `saes/<run>/`.
    Folders appear when complete. Trained clients and dictionaries are cached, so that an interrupted run goes on from
    them. Raises `FolderExists` before any work, and whatever the packages raise on bad input.
    """
    _check(config)
    check_scheme(config.split, **config.scheme_options)
    chosen = model_options(config.model, config.model_options)
    task = None if config.task is None else TASKS[config.task]()
    folder = Path(out) if out else Path("reports") / config.run_name
    saes = None if out else Path("saes") / config.run_name
    with ExitStack() as stack:
        for path in (folder, saes):
            if path is not None:
                stack.enter_context(storage.claim(path, overwrite))
        dataset = load(config.dataset, config.folder or None, progress)
        dataset = dataset if task is None else replace(dataset, task=task)
        trials, clients = [], []
        with _Progress(config.seeds, progress) as bar:
            for seed in range(config.seeds):
                trial, members = _trial(config, dataset, chosen, seed, bar)
                trials.append(trial)
                clients += [row for member in members for row in _client_rows(seed, member, dataset)]
                bar.advance()
        facts = {
            "probe": config.probe,
            "parameters": sum(p.numel() for p in trials[0].cohort.modules[-1].parameters()),
            "dataset": dataset.to_dict(),
        }
        result = CompareResult.gather(config, trials, clients, facts)
        result.save(folder, overwrite, saes)
    return result


def _check(config: CompareConfig) -> None:
    """Names and options of everything registered, before any work."""
    for name in config.methods:
        METHODS[name]
    for name, values in config.options.items():
        METHODS[name].bind(values, name)
    if ARCHITECTURES[config.architecture].transcodes:
        raise BadOption(f"architecture '{config.architecture}' maps one layer to another; choose one that reads one")
    check_recipe(config.augment)


def _extended(inputs: Inputs, config: CompareConfig, seed: int) -> Inputs | None:
    """The probe with synthetic inputs; None where none are wanted."""
    if config.augment == "none":
        return None
    tensor = inputs.tensor
    if tensor is None:
        raise ProbeError(f"augment = '{config.augment}' needs one tensor as probe; leave it at 'none'")
    return Inputs.of(extend(tensor, config.augmented, seed, config.augment))


def _trial(
    config: RunConfig, dataset: Dataset, chosen: Mapping[str, Any], seed: int, bar: _Progress
) -> tuple[Trial, list[Client]]:
    """One repetition: partition, clients, probe, and everything measured on them."""
    say = bar.stage(seed)
    say("clients")
    parts = partition(
        dataset.train_labels, config.split, config.clients, seed, dataset.class_names, **config.scheme_options
    )
    network = models[config.model].for_dataset(dataset, **chosen)
    recipe = network.recipe(len(dataset.train_labels), **({"epochs": config.epochs} if config.epochs else {}))
    members = train_clients(dataset, parts, network, recipe, seed, progress=bar.shown, device=config.device)
    kept = [member for member in members if not member.note]
    if not kept:
        raise BadOption(f"split '{config.split}' left all {config.clients} clients without samples; ask for fewer")
    inputs = Inputs.of(draw(dataset, config.probe, seed))
    cohort = Cohort.of(
        [member.model for member in kept],
        inputs,
        (dataset.test_inputs, dataset.test_labels),
        kept[0].task,
        data=[dataset.train_inputs[torch.as_tensor(member.indices)] for member in kept],
        names=[member.name for member in kept],
        class_counts=torch.stack([torch.as_tensor(member.counts) for member in kept]) if config.class_counts else None,
        class_names=dataset.class_names,
        refit_inputs=_extended(inputs, config, seed),
        keys=[member.key for member in kept],
        seed=seed,
        device=config.device,
    )
    left = [f"client {member.name} is left out: {member.note}" for member in members if member.note]
    cohort = cohort.changed(notes=(*cohort.notes, *left))
    return examine(cohort, config, say), list(members)


def _client_rows(seed: int, member: Client, dataset: Dataset) -> list[ClientRow]:
    counts = [int(count) for count in member.counts]
    names = [str(name) for name in dataset.class_names] or [str(k) for k in range(len(counts))]
    samples = len(member.indices)
    return [
        ClientRow(seed, member.name, samples, label, count, member.note) for label, count in zip(names, counts)
    ] or [ClientRow(seed, member.name, samples, note=member.note)]


class _Progress:
    """A bar over seeds whose description says what is being done."""

    def __init__(self, seeds: int, shown: bool):
        from tqdm.auto import tqdm

        self.shown = shown
        self._seeds = seeds
        self._bar = tqdm(total=seeds, unit="seed", disable=not shown, leave=False)

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def stage(self, seed: int) -> Any:
        """A function that names what is being done in a repetition."""
        where = f"seed {seed + 1}/{self._seeds}: " if self._seeds > 1 else ""
        return lambda what: self._bar.set_description(f"{where}{what}")

    def advance(self) -> None:
        """One seed is done."""
        self._bar.update()
