"""`featalign compare`: in which basis do clients agree, and what does averaging in the wrong one cost?

`compare` takes the user's own modules; `run` trains clients on a shipped data set, repeats over seeds and writes the
run folder. Both put the packages in order and hold no mathematics.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featalign.config import DEFAULT_METHODS, RunConfig
from featalign.errors import ArchitectureMismatch, BadOption, ProbeError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from featalign.data.datasets import Dataset
    from featalign.dictionaries.dictionary import Dictionary
    from featalign.evidence import Trial
    from featalign.fuse.problem import FusionProblem
    from featalign.results import CompareResult

    Dictionaries = dict[str, tuple[Dictionary, ...]]


def compare(
    clients: Sequence[nn.Module],
    probe: Any,
    evaluate: tuple[torch.Tensor, torch.Tensor],
    methods: Sequence[str] = DEFAULT_METHODS,
    mixing: float | None = None,
    data: Sequence[torch.Tensor] | None = None,
    augment: str = "none",
    augmented: int = 10_000,
    class_counts: torch.Tensor | None = None,
    seed: int = 0,
    progress: bool = True,
    **options: Any,
) -> CompareResult:
    """Compare two or more trained modules of one architecture: align, fuse, measure, explain.

    Args:
        clients: modules in any framework style that tracing understands; the last one is the reference.
        probe: unlabelled inputs `[samples, ...]` (or a loader, which is gathered) that all clients may see.
        evaluate: `(inputs, labels)` for accuracy; never used to fit anything.
        methods: registered names, `fa.fuse.METHODS.names()`.
        mixing: weight of the first client, the others sharing the rest; None means equal weights.
        data: the inputs on which each client's dictionaries are trained; the probe when not given.
        augment, augmented: recipe and size of the probe's extension, 'shift-mix' for images, 'gaussian', or 'none'.
        class_counts: `[clients, classes]` label counts, if the server may know them.
        options: of `RunConfig`: head, ridge, expansion, k, curve.

    Raises subclasses of `FeatalignError` for an empty probe or one of the wrong shape, modules of different
    architecture, NaN weights and unknown methods.
    """
    import torch

    from featalign.data.inputs import Inputs
    from featalign.data.partition import client_names
    from featalign.data.probe import augment as extend
    from featalign.evidence import Trial
    from featalign.results import CompareResult

    if len(clients) == 0:
        raise BadOption("zero clients; pass a list of at least one trained module")
    inputs = torch.cat([batch.args[0] for batch in Inputs.of(probe)])
    names = list(client_names(len(clients)))
    config = RunConfig(
        dataset="user", clients=len(clients), seeds=1, probe=len(inputs), mixing=mixing, methods=tuple(methods),
        augment=augment, augmented=augmented, split="user", class_counts=class_counts is not None, **options,
    )  # fmt: skip
    trial = Trial(seed, names, tuple(clients), evaluate[0], evaluate[1], class_counts=class_counts)
    refit_inputs = extend(inputs, augmented, seed, augment)
    problem = _problem(config, trial, inputs, refit_inputs)
    bar = _Progress(1, progress)
    own = list(data) if data is not None else [inputs] * len(clients)
    dictionaries, transcoders = _train_dictionaries(config, problem, own, names, seed, bar)
    trials = [_examine(config, trial, problem, dictionaries, transcoders, bar)]
    bar.close()
    return CompareResult.gather(config, trials)


def run(
    config: RunConfig, out: Path | str | None = None, overwrite: bool = False, progress: bool = True
) -> CompareResult:
    """Train (or load) clients on a data set, compare them over seeds and write the run folder.

    Everything goes below `out`; without it, results and page to `reports/<run>/` and dictionaries to `saes/<run>/`.
    Folders appear when complete. Trained clients and dictionaries are cached, so that an interrupted run goes on from
    them. Raises `FolderExists` before any work, and whatever the packages raise on bad input.
    """
    from featalign import storage
    from featalign.data import load
    from featalign.fuse.methods import choose
    from featalign.report import build
    from featalign.results import CompareResult

    choose(config.methods)
    folder = Path(out) if out else Path("reports") / config.run_name
    saes = folder / "saes" if out else Path("saes") / config.run_name
    for path in (folder, saes):
        storage.refuse_existing(path, overwrite)
    dataset = load(config.dataset, config.folder or None, progress)
    bar = _Progress(config.seeds, progress)
    trials = [_trial(config, dataset, seed, bar) for seed in range(config.seeds)]
    bar.close()
    result = CompareResult.gather(config, trials)
    with ExitStack() as stack:
        temporary = stack.enter_context(storage.atomic_folder(folder, overwrite))
        apart = None if out else stack.enter_context(storage.atomic_folder(saes, overwrite))
        result.save(temporary, apart or temporary / "saes")
        build(temporary)
    result.folder, result.saes = folder, saes
    return result


def _trial(config: RunConfig, dataset: Dataset, seed: int, bar: _Progress) -> Trial:
    """One repetition: partition, clients, probe, dictionaries, every method, everything measured."""
    import torch

    from featalign.clients import MLPConfig
    from featalign.clients.client import train_clients
    from featalign.data import partition
    from featalign.data.probe import augment, probe
    from featalign.evidence import Trial

    scheme_options: dict[str, Any] = {}
    if config.split == "special-label":
        scheme_options = {"special": config.special}
    elif "dirichlet" in config.split or config.split == "quantity":
        scheme_options = {"alpha": config.alpha}
    parts = partition(dataset.train_labels, config.split, config.clients, seed, dataset.class_names, **scheme_options)
    model = MLPConfig.for_dataset(dataset, **({"hidden": config.hidden} if config.hidden else {}))
    recipe = model.recipe(len(dataset.train_labels), **({"epochs": config.epochs} if config.epochs else {}))
    bar.say(seed, "clients")
    members = train_clients(dataset, parts, model, recipe, seed, progress=bar.shown)
    counts = torch.as_tensor(parts.counts) if config.class_counts else None
    trial = Trial(
        seed, [member.name for member in members], tuple(member.model for member in members),
        dataset.test_inputs, dataset.test_labels, class_counts=counts, members=members,
        class_names=list(dataset.class_names), partition=parts.to_dict(),
    )  # fmt: skip
    shared = probe(dataset, config.probe, seed)
    problem = _problem(config, trial, shared, augment(shared, config.augmented, seed, config.augment))
    own = [dataset.train_inputs[torch.as_tensor(member.indices)] for member in members]
    keys = [member.key for member in members]
    bar.say(seed, "dictionaries")
    dictionaries, transcoders = _train_dictionaries(config, problem, own, trial.names, seed, bar, keys)
    return _examine(config, trial, problem, dictionaries, transcoders, bar)


def _problem(config: RunConfig, trial: Trial, probe: torch.Tensor, refit_inputs: torch.Tensor) -> FusionProblem:
    """Trace every client and check that the probe fits them."""
    import torch

    from featalign.clients.training import check_finite
    from featalign.fuse.problem import FusionProblem
    from featalign.spaces import trace
    from featalign.spaces.capture import evaluating

    shapes = [{name: tensor.dim() for name, tensor in client.state_dict().items()} for client in trial.clients]
    for k, shape in enumerate(shapes[1:], start=1):
        if shape != shapes[0]:
            differing = sorted(set(shape.items()) ^ set(shapes[0].items()))[0][0]
            raise ArchitectureMismatch(
                f"clients {trial.names[0]} and {trial.names[k]} differ at '{differing}': they need the same layers "
                f"({len(shapes[0])} and {len(shape)} tensors); fuse clients of one architecture and depth"
            )
    for name, client in zip(trial.names, trial.clients):
        check_finite(client, name)
        try:
            with evaluating(client):
                client(probe[:2])
        except (RuntimeError, ValueError, TypeError) as error:
            raise ProbeError(
                f"client {name} rejects the probe {list(probe.shape)}: {str(error).splitlines()[0]}; "
                "pass inputs of the shape that the clients take"
            ) from error
        if not torch.isfinite(probe).all():
            raise ProbeError(f"the probe {list(probe.shape)} holds NaN or infinity; drop those samples")
    graphs = tuple(trace(client, probe[:2]) for client in trial.clients)
    return FusionProblem(
        trial.clients, graphs, probe, refit_inputs, config.weights, len(trial.clients) - 1,
        class_counts=trial.class_counts, seed=trial.seed,
    )  # fmt: skip


def _train_dictionaries(
    config: RunConfig,
    problem: FusionProblem,
    own: Sequence[torch.Tensor],
    names: Sequence[str],
    seed: int,
    bar: _Progress,
    keys: Sequence[str] | None = None,
) -> tuple[Dictionaries, Dictionaries]:
    """SAEs of every space and client (and transcoders when a method wants them), cached with their clients."""
    from featalign.dictionaries.store import cached_dictionaries

    architectures = ["topk"]
    if "feature-zip" in config.methods:
        architectures.append("transcoder")
    found = []
    for architecture in architectures:
        bar.say(seed, f"dictionaries ({architecture})")
        found.append(
            cached_dictionaries(
                problem.clients, problem.graphs, own, names, architecture, seed,
                keys=keys, expansion=config.expansion, k=config.k,
            )
        )  # fmt: skip
    return found[0], found[1] if len(found) > 1 else {}


def _examine(
    config: RunConfig,
    trial: Trial,
    problem: FusionProblem,
    dictionaries: Dictionaries,
    transcoders: Dictionaries,
    bar: _Progress,
) -> Trial:
    """Run every method raw and refitted, draw the mixing curves, diagnose the spaces."""
    from dataclasses import replace

    from featalign.clients import Ensemble
    from featalign.evidence import diagnose_spaces
    from featalign.fuse import METHODS, fuse

    problem = replace(problem, dictionaries=dictionaries, transcoders=transcoders)
    trial.problem, trial.dictionaries, trial.transcoders = problem, dictionaries, transcoders
    for name, client in zip(trial.names, trial.clients):
        trial.score(f"client-{name}", client)
    for average, head in (("softmax", None), ("logits", "mean-logits")):
        trial.score(f"ensemble-{average}", Ensemble(trial.clients, problem.mixing, head=head))
    for _ in problem.activations():  # captured once, shared by all methods
        pass
    for method in config.methods:
        for refitted in (True,) if METHODS[method].needs_refit else (False, True):
            if method == "feature-fold" and refitted:
                continue
            bar.say(trial.seed, f"{method}{'+refit' if refitted else ''}")
            make = _fuser(fuse, method, refitted, config)
            result = make(problem)
            trial.results[result.name] = result
            trial.score(result.name, result.module, result.seconds)
            if config.curve and len(trial.clients) > 1:
                trial.curve(result.name, make, config.curve)
    bar.say(trial.seed, "diagnosis")
    trial.spaces = diagnose_spaces(trial)
    bar.advance()
    return trial


def _fuser(fuse: Callable[..., Any], method: str, refitted: bool, config: RunConfig) -> Callable[[FusionProblem], Any]:
    return lambda problem: fuse(problem, method, refitted, head=config.head, ridge=config.ridge)


class _Progress:
    """A bar over seeds whose description says what is being done."""

    def __init__(self, seeds: int, shown: bool):
        from tqdm.auto import tqdm

        self.shown = shown
        self._seeds = seeds
        self._bar = tqdm(total=seeds, unit="seed", disable=not shown, leave=False)

    def say(self, seed: int, what: str) -> None:
        """Name the stage."""
        self._bar.set_description(f"seed {seed + 1}/{self._seeds}: {what}")

    def advance(self) -> None:
        """One seed is done."""
        self._bar.update()

    def close(self) -> None:
        """Remove the bar."""
        self._bar.close()


__all__ = ["RunConfig", "compare", "run"]
