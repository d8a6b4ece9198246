"""The small table of fusion: every registered method on small networks of seven kinds, in minutes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featalign.errors import BadOption
from featalign.registry import Registry

if TYPE_CHECKING:
    import pandas as pd

    from featalign.clients import Cohort
    from featalign.fuse import FusionProblem

PAIRS: Registry[Callable[[int, bool], Cohort]] = Registry("pair of networks")


@dataclass(frozen=True)
class FusionRow:
    """One network of the table.

    Attributes:
        pair: of networks; seed: the repetition.
        method: registered name; empty for the clients and their ensemble.
        stage: client, ensemble, fused or refit.
        metric, value: the task's headline, on held-out data, at equal weights.
        seconds: of the fusion, what earlier methods computed of the same pair being shared.
        memory: peak resident megabytes of the process during it.
    """

    pair: str
    seed: int
    method: str
    stage: str
    metric: str
    value: float
    seconds: float = 0.0
    memory: float = 0.0


@dataclass(frozen=True)
class FusionBench:
    """All rows, and the methods that a pair does not allow, with the reason."""

    rows: tuple[FusionRow, ...]
    left_out: dict[str, dict[str, str]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"rows": [asdict(row) for row in self.rows], "left_out": self.left_out}

    def to_frame(self) -> pd.DataFrame:
        """A row per pair, method and stage: mean and standard deviation over seeds, mean seconds, largest memory."""
        import pandas as pd

        frame = pd.DataFrame([asdict(row) for row in self.rows])
        grouped = frame.groupby(["pair", "method", "stage", "metric"], sort=False)
        table = grouped.agg(
            value=("value", "mean"), std=("value", "std"), seeds=("seed", "nunique"), seconds=("seconds", "mean"),
            memory=("memory", "max"),
        )  # fmt: skip
        return table.reset_index()


def fusion(
    pairs: Sequence[str] = (),
    methods: Sequence[str] = (),
    seeds: int = 1,
    progress: bool = True,
) -> FusionBench:
    """Train (or load) the pairs of each seed and fuse them by every method, before and after the refit.

    All methods see the same unlabelled probe, and get the same refit and repair. Without names it is every pair and
    every method that needs no dictionary; raises `UnknownName` for others, `BadOption` for methods that need one.
    """
    from featalign.fuse import METHODS, FusionProblem, available
    from featalign.fuse.needs import TRAINED

    chosen = [name for name in methods or METHODS.names() if methods or not TRAINED.keys() & set(METHODS[name].needs)]
    if needy := [name for name in chosen if TRAINED.keys() & set(METHODS[name].needs)]:
        raise BadOption(f"method '{needy[0]}' needs trained dictionaries; see it in `featalign compare`")
    rows: list[FusionRow] = []
    left_out: dict[str, dict[str, str]] = {}
    for pair in pairs or PAIRS.names():
        for seed in range(seeds):
            problem = FusionProblem(PAIRS[pair](seed, progress))
            reasons = available(problem)
            left_out[pair] = {name: why for name in chosen if (why := reasons[name]) is not None}
            rows += _parents(pair, seed, problem)
            for method in chosen:
                if reasons[method] is None:
                    rows += _fused(pair, seed, problem, method)
    return FusionBench(tuple(rows), left_out)


def _parents(pair: str, seed: int, problem: FusionProblem) -> list[FusionRow]:
    """The clients alone, and all of them kept."""
    from featalign.clients import Ensemble, evaluate

    cohort = problem.cohort
    networks = [("client", module) for module in cohort.modules]
    networks.append(("ensemble", Ensemble(cohort.modules, problem.mixing, cohort.task)))
    metric = cohort.task.metric.name
    return [
        FusionRow(pair, seed, "", stage, metric, evaluate(network, cohort.evaluation, cohort.task)[metric])
        for stage, network in networks
    ]


def _fused(pair: str, seed: int, problem: FusionProblem, method: str) -> Iterator[FusionRow]:
    """A method before and after the refit, as far as it has both."""
    from featalign.clients import evaluate
    from featalign.fuse import METHODS, solve

    task = problem.cohort.task
    for refit in METHODS[method].stages:
        peak, began = Peak(), time.perf_counter()
        module = solve(problem, method, refit=refit).module
        seconds, memory = time.perf_counter() - began, peak.megabytes()
        value = evaluate(module, problem.cohort.evaluation, task)[task.metric.name]
        stage = "refit" if refit else "fused"
        yield FusionRow(pair, seed, method, stage, task.metric.name, value, seconds, memory)


class Peak:
    """Peak resident memory from now on where the kernel allows it to be reset, of the whole process elsewhere."""

    def __init__(self) -> None:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")

    def megabytes(self) -> float:
        """Since then."""
        import resource

        try:
            status = Path("/proc/self/status").read_text()
        except OSError:
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        return next(float(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM"))


@PAIRS.register("mnist-mlp")
def mnist_mlp(seed: int, progress: bool) -> Cohort:
    """Label 4 with one client alone, a tenth of all else; three epochs; 400 unlabelled digits, shifted and mixed."""
    return _pictures("mnist", "special-label", "mlp", ({}, {}), {"epochs": 3}, seed, progress, augmented=4000)


@PAIRS.register("mnist-depths")
def mnist_depths(seed: int, progress: bool) -> Cohort:
    """Perceptrons of two and of three hidden layers, on half of MNIST each; as above."""
    shapes: tuple[dict[str, Any], ...] = ({"hidden": (400, 100)}, {"hidden": (400, 200, 100)})
    return _pictures("mnist", "iid", "mlp", shapes, {"epochs": 3}, seed, progress, augmented=4000)


@PAIRS.register("digits-resnet20")
def digits_resnet(seed: int, progress: bool) -> Cohort:
    """Residual networks with batch normalisation, a quarter of the width, on half of the 8 x 8 digits each."""
    shapes = ({"width": 0.25},) * 2
    return _pictures("digits", "iid", "resnet20", shapes, {"epochs": 8}, seed, progress, augmented=1000)


@PAIRS.register("digits-vit")
def digits_vit(seed: int, progress: bool) -> Cohort:
    """Transformers of two blocks and width 32 on half of the 8 x 8 digits each."""
    shapes = ({"width": 32, "depth": 2, "hidden": 64, "patch": 2},) * 2
    return _pictures("digits", "iid", "vit", shapes, {"epochs": 20}, seed, progress, augmented=1000)


@PAIRS.register("digits-encoder")
def digits_encoder(seed: int, progress: bool) -> Cohort:
    """`nn.TransformerEncoder` as it comes (norms after the sums), on half of the 8 x 8 digits each, a token per row."""
    return _pictures("digits", "iid", "encoder", ({},) * 2, {"epochs": 40}, seed, progress, augmented=4000)


@PAIRS.register("digits-encoder-norm-first")
def digits_encoder_norm_first(seed: int, progress: bool) -> Cohort:
    """The same with norms in front."""
    shapes = ({"norm_first": True},) * 2
    return _pictures("digits", "iid", "encoder", shapes, {"epochs": 40}, seed, progress, augmented=4000)


@PAIRS.register("characters")
def characters(seed: int, progress: bool) -> Cohort:
    """Two seeds of a character transformer (2 blocks, width 48), 300 steps on Shakespeare; 64 unlabelled windows."""
    from featalign.bench.pairs import language_pair
    from featalign.clients import Cohort

    modules, probe, evaluation = language_pair("seeds", 300, 64, seed=seed, progress=progress)
    return Cohort.of(modules, probe, evaluation, "next-token", seed=seed)


def _pictures(
    name: str,
    split: str,
    family: str,
    shapes: Sequence[dict[str, Any]],
    recipe: dict[str, Any],
    seed: int,
    progress: bool,
    augmented: int,
    size: int = 400,
) -> Cohort:
    """Clients of a family on a split of a data set, an unlabelled probe, and its extension for the refit.

    `shapes` are the options of the family, for each client.
    """
    from featalign import data
    from featalign.clients import Cohort, models, train_clients

    dataset: Any = data.load(name, progress=progress)
    kind: Any = models[family]
    parts = data.partition(dataset.train_labels, split, len(shapes), seed, dataset.class_names)
    training = kind.recipe(min(len(part) for part in parts.indices), **recipe)
    configs = [kind.for_dataset(dataset, **shape) for shape in shapes]
    clients = train_clients(dataset, parts, configs, training, seed, progress)
    probe = data.probe(dataset, size, seed)
    return Cohort.of(
        [client.model for client in clients], probe, (dataset.test_inputs, dataset.test_labels), dataset.task,
        refit_inputs=data.augment(probe, augmented, seed), seed=seed,
    )  # fmt: skip
