"""What all experiments share: the data set, its trained networks (cached), a probe, and fusing with a score."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from torch import nn

from featalign import data
from featalign.bench.paper.rows import Row
from featalign.clients import Cohort, Ensemble, MLPConfig, TrainConfig, evaluate, train_clients
from featalign.data import partition
from featalign.fuse import FusionProblem, FusionResult, solve

if TYPE_CHECKING:
    from featalign.clients import Client
    from featalign.data.datasets import Dataset


@dataclass(frozen=True)
class Way:
    """A way of fusing: the name of its row, a registered method with options, and whether it is refitted."""

    row: str
    method: str
    refit: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


VANILLA, ACTS, WEIGHTS = Way("vanilla", "vanilla"), Way("OT, activations", "ot-acts"), Way("OT, weights", "ot-wts")
ACTS_REFITTED, ZIP = Way("OT, activations, refitted", "ot-acts", True), Way("zip", "zip", True)
RULES, REFITTED = (VANILLA, ACTS), (ACTS_REFITTED, ZIP)


@dataclass(frozen=True)
class Lab:
    """The setting of the experiments.

    Networks are OTFusion's multilayer perceptron for the data set, trained as in the paper (10 epochs of SGD on
    batches of 64, rate .01, momentum .5) unless `epochs` says otherwise.

    Attributes:
        dataset: a name of `data.datasets`.
        probe: unlabelled training inputs for matching (the paper takes 200).
        augmented: inputs that the refit sees, made of the probe by shifting and mixing; 0 leaves the probe as it is.
        epochs: of training; None is the family's recipe.
        progress: show bars while training.
    """

    dataset: str = "mnist"
    probe: int = 200
    augmented: int = 10_000
    epochs: int | None = None
    progress: bool = field(default=True, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain values of what decides the numbers."""
        return {name: value for name, value in asdict(self).items() if name != "progress"}

    @cached_property
    def data(self) -> Dataset:
        """The data set."""
        return data.load(self.dataset, progress=self.progress)

    @cached_property
    def test(self) -> tuple[Any, Any]:
        """Test inputs and labels: they score and fit nothing."""
        return self.data.test_inputs, self.data.test_labels

    def config(self, factor: float = 1.0) -> MLPConfig:
        """The perceptron with every hidden width times a factor."""
        config = MLPConfig.for_dataset(self.data)
        return replace(config, hidden=tuple(max(1, round(factor * size)) for size in config.hidden))

    def recipe(self, **options: Any) -> TrainConfig:
        """How networks are trained on the data set."""
        usual = {} if self.epochs is None else {"epochs": self.epochs}
        return MLPConfig.recipe(len(self.data.train_labels), **{**usual, **options})

    def split(
        self,
        seed: int,
        scheme: str = "special-label",
        clients: int = 2,
        shared_init: bool = False,
        factors: Sequence[float] = (),
        **options: Any,
    ) -> list[Client]:
        """Clients of a partition, of the paper's widths or of `factors` times them, one factor per client."""
        parts = partition(self.data.train_labels, scheme, clients, seed, self.data.class_names, **options)
        configs = [self.config(factor) for factor in factors] if factors else self.config()
        return train_clients(self.data, parts, configs, self.recipe(), seed, self.progress, shared_init=shared_init)

    def whole(self, seed: int, count: int = 1, factor: float = 1.0) -> list[nn.Module]:
        """Networks from `count` initialisations, each trained on the whole training split."""
        everything = partition(self.data.train_labels, "iid", 1, 0, self.data.class_names)
        settings = (self.config(factor), self.recipe())
        return [
            train_clients(self.data, everything, *settings, 100 * seed + k, self.progress)[0].model
            for k in range(count)
        ]

    def problem(self, modules: Sequence[nn.Module], seed: int, probe: int | None = None) -> FusionProblem:
        """The fusion of networks at equal weights, the last one the reference."""
        inputs = data.probe(self.data, probe or min(self.probe, len(self.data.train_labels)), seed)
        refit = data.augment(inputs, self.augmented, seed) if self.augmented else None
        return FusionProblem(Cohort.of(list(modules), inputs, self.test, self.data.task, refit_inputs=refit, seed=seed))

    def accuracy(self, module: nn.Module) -> float:
        """On the test split."""
        return evaluate(module, self.test, self.data.task)["accuracy"]

    def parents(self, problem: FusionProblem, seed: int, part: str, x: float | None = None) -> Iterator[Row]:
        """Rows of the networks themselves and of their ensemble."""
        cohort = problem.cohort
        for name, module in zip(cohort.names, cohort.modules):
            yield Row(seed, part, f"parent {name}", x, self.accuracy(module))
        yield Row(seed, part, "ensemble", x, self.accuracy(Ensemble(cohort.modules, problem.mixing, cohort.task)))

    def fused(self, problem: FusionProblem, way: Way) -> FusionResult:
        """A problem solved by a method."""
        return solve(problem, way.method, refit=way.refit, **way.options)

    def row(self, problem: FusionProblem, way: Way, seed: int, part: str, x: float | None = None) -> Row:
        """The row of one way of fusing."""
        result = self.fused(problem, way)
        return Row(seed, part, way.row, x, self.accuracy(result.module), result.seconds)
