"""CIFAR-10 at 32x32 with VGG11, ResNet20 and a vision transformer: what one-shot fusion keeps of two networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from featalign.clients.client import Client
    from featalign.data.datasets import Dataset

# Width, further options of the configuration, and training of each family on CIFAR-10: eleven minutes of one core for
# VGG11, 24 for ResNet20.
MODELS: dict[str, dict[str, Any]] = {
    "resnet20": {"width": 1.0},
    "vgg11": {"width": 0.25, "batch_norm": True},
    "vit": {"width": 64, "depth": 4, "stem": "convolutions"},
}
_PICTURES = {"flip": True, "shift": 2, "schedule": "one-cycle", "warmup": 0.25, "label_smoothing": 0.05}
_SGD = {"optimizer": "sgd", "lr": 0.2, "momentum": 0.9, "weight_decay": 5e-4, "batch_size": 128, "channels_last": True}
RECIPES: dict[str, dict[str, Any]] = {
    "resnet20": {**_PICTURES, **_SGD, "epochs": 9, "coarse": 0.78},
    "vgg11": {**_PICTURES, **_SGD, "epochs": 14, "coarse": 0.7, "lr": 0.1},
    "vit": {**_PICTURES, "epochs": 12},
}
WITHOUT_DICTIONARIES = ("vanilla", "ot-acts", "ot-wts", "weight-matching", "zip")


def parents(
    model: str, dataset: Dataset, seed: int = 0, progress: bool = True, epochs: int | None = None, **options: Any
) -> list[Client]:
    """Two networks from different initialisations, trained on the whole training split (cached).

    As in OTFusion and git re-basin: same data, two initialisations, `2 seed` and `2 seed + 1`. `options` are those of
    the model's configuration.
    """
    from featalign.clients import models, train_clients
    from featalign.data import partition

    kind: Any = models[model]
    config = kind.for_dataset(dataset, **{**MODELS.get(model, {}), **options})
    training = {**RECIPES.get(model, {}), **({} if epochs is None else {"epochs": epochs})}
    whole = partition(dataset.train_labels, "iid", 1, 0, dataset.class_names)
    recipe = kind.recipe(len(dataset.train_labels), **training)
    return [
        client for k in range(2) for client in train_clients(dataset, whole, config, recipe, 2 * seed + k, progress)
    ]


@dataclass(frozen=True)
class VisionRow:
    """Accuracy of one way of fusing the pair of one seed; `share` is the weight of the first parent."""

    model: str
    seed: int
    name: str
    share: float
    accuracy: float
    seconds: float


@dataclass(frozen=True)
class VisionResult:
    """All rows, at equal weights and (where asked for) along the mixing curve."""

    rows: tuple[VisionRow, ...]
    config: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"config": self.config, "rows": [asdict(row) for row in self.rows]}

    def to_frame(self) -> Any:
        """Mean accuracy at equal weights by model and way of fusing (pandas), with the count of seeds."""
        import pandas as pd

        frame = pd.DataFrame([asdict(row) for row in self.rows if row.share == 0.5])
        grouped = frame.groupby(["model", "name"], sort=False)
        return grouped.agg(accuracy=("accuracy", "mean"), seeds=("seed", "nunique"), seconds=("seconds", "mean"))

    def gap_closed(self, model: str) -> float:
        """Share of the gap between the vanilla average and the mean parent that the best one-shot fusion closes."""
        frame = self.to_frame().loc[model]["accuracy"]
        parents = [name for name in frame.index if name.startswith("parent")]
        fused = [name for name in frame.index if not name.startswith(("parent", "ensemble"))]
        goal = float(frame[parents].mean())
        return float((frame[fused].max() - frame["vanilla"]) / max(goal - frame["vanilla"], 1e-9))


VARIANTS = ((False, False), (True, False), (False, True), (True, True))  # repair, refit
CURVES = ((True, False), (False, True))


def vision(
    architectures: Sequence[str] = ("vgg11", "resnet20"),
    methods: Sequence[str] | None = None,
    seeds: int = 1,
    probe: int = 400,
    augmented: int = 2000,
    curve: Sequence[float] = (),
    epochs: int | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    progress: bool = True,
    **model_options: Any,
) -> VisionResult:
    """Train (or load) pairs of networks and fuse each pair by every method, with and without repair and refit.

    The probe is unlabelled training pictures; matching and repair see them as they are, the refit sees `augmented`
    pictures made of them by shifting and mixing. Every method gets the same; `methods` defaults to all that
    apply. `epochs` are those of training, the recipe's unless given, `options` by method. `curve` lists
    further weights of the first parent at which every method is scored repaired, and refitted. `model_options` are of
    the networks, such as `layer_norm=True`.
    """
    from featalign import data

    rows: list[VisionRow] = []
    dataset = data.load("cifar10", progress=progress)
    for model in architectures:
        for seed in range(seeds):
            clients = [c.model for c in parents(model, dataset, seed, progress, epochs, **model_options)]
            rows += _pair(model, clients, dataset, methods, seed, probe, augmented, curve, options or {})
    config = {
        "probe": probe,
        "augmented": augmented,
        "seeds": seeds,
        "epochs": {name: epochs or RECIPES.get(name, {}).get("epochs") for name in architectures},
        "models": {name: {**MODELS.get(name, {}), **model_options} for name in architectures},
        "options": {name: dict(each) for name, each in (options or {}).items()},
    }
    return VisionResult(tuple(rows), config)


def _pair(
    model: str,
    clients: list[nn.Module],
    dataset: Dataset,
    methods: Sequence[str] | None,
    seed: int,
    probe: int,
    augmented: int,
    curve: Sequence[float],
    options: Mapping[str, Mapping[str, Any]],
) -> list[VisionRow]:
    """Rows of one pair."""
    from featalign import data
    from featalign.clients import Cohort, Ensemble, evaluate
    from featalign.fuse import METHODS as REGISTERED
    from featalign.fuse import FusionProblem, available, solve

    inputs = data.probe(dataset, probe, seed)
    refit_inputs = data.augment(inputs, augmented, seed) if augmented else None
    test = (dataset.test_inputs, dataset.test_labels)
    cohort = Cohort.of(clients, inputs, test, dataset.task, refit_inputs=refit_inputs, seed=seed)
    problem = FusionProblem(cohort)

    def row(name: str, module: Any, share: float = 0.5, seconds: float = 0.0) -> VisionRow:
        score = evaluate(module, cohort.evaluation, cohort.task)["accuracy"]
        return VisionRow(model, seed, name, share, score, seconds)

    rows = [row(f"parent-{name}", client) for name, client in zip(cohort.names, cohort.modules)]
    rows.append(row("ensemble", Ensemble(cohort.modules, problem.mixing, cohort.task)))
    possible = [name for name, reason in available(problem).items() if reason is None and name in WITHOUT_DICTIONARIES]
    for method in methods or possible:
        own = options.get(method, {})
        repairs = True  # until the method turns out to bring statistics of its own
        for repaired, refitted in VARIANTS:
            if refitted in REGISTERED[method].stages and (repairs or not repaired):
                result = solve(problem, method, refit=refitted, repair=repaired, **own)
                repairs = repairs and (result.repaired or not repaired)
                if result.repaired == repaired:
                    rows.append(row(result.name, result.module, seconds=result.seconds))
        for share in curve:
            for repaired, refitted in CURVES:
                if refitted in REGISTERED[method].stages:
                    mixed = problem.mixed((share, 1 - share))
                    result = solve(mixed, method, refit=refitted, repair=repaired, **own)
                    rows.append(row(result.name, result.module, share, result.seconds))
    return rows
