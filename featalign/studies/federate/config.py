"""What determines a federate study: a data set dealt to clients, and how each run aggregates."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from featalign import options as typed
from featalign import storage
from featalign.clients.training import TrainConfig
from featalign.data.partition import schemes
from featalign.errors import BadOption
from featalign.federated import Fusing, Local, Settings


@dataclass(frozen=True)
class RunSettings:
    """How one run selects, weighs, fuses and trains.

    Attributes:
        rounds: how many.
        select, weigh, fuse, algorithm: registered names: selection, weighing, fusion method, local algorithm.
        select_options, weigh_options, fuse_options, algorithm_options: of those.
        refit: no, on the public probe (true), or from the clients' moments alone ("moments").
        calibrate: solve the readout of the fused network from sums over the clients, in a second exchange; "masked"
            sends summands that only their sum can be read from.
        match: units by the method, or by Gromov transport between the clients' Gram matrices ("gromov").
        probe_kind: public, or drawn from Gaussians of the clients' inputs (synthetic).
        noise: Gaussian, on moments that leave a client, in units of each Gram matrix's mean diagonal.
        repair: of statistics; none as the method decides.
        head: target of the readout in the refit; None for what suits the task and the clients (`fuse.choose.head_of`).
        ridge: of the refit, relative to each Gram matrix.
        epochs: of local training in a round.
        batch_size, lr, local_momentum: of local training; none means the family's recipe.
        start: shared weights, or independent initialisations in the first round.
        server_lr, momentum: of the server's step.
        importance: samples or uniform.
        clip: updates beyond so many times what is typical of a round are scaled down.
        watch: samples of each client on which the server's network is scored; 0 leaves that out.
        features: rounds between two readings of features on the probe; 0 leaves them out.
    """

    rounds: int = 20
    select: str = "all"
    select_options: Mapping[str, Any] = field(default_factory=dict)
    weigh: str = "samples"
    weigh_options: Mapping[str, Any] = field(default_factory=dict)
    fuse: str = "vanilla"
    fuse_options: Mapping[str, Any] = field(default_factory=dict)
    refit: bool | Literal["moments"] = False
    calibrate: bool | Literal["masked"] = False
    match: Literal["method", "gromov"] = "method"
    probe_kind: Literal["public", "synthetic"] = "public"
    noise: float = 0.0
    repair: bool | None = None
    head: str | None = None
    ridge: float = 1e-2
    algorithm: str = "plain"
    algorithm_options: Mapping[str, Any] = field(default_factory=dict)
    epochs: int = 1
    batch_size: int | None = None
    lr: float | None = None
    local_momentum: float | None = None
    start: Literal["shared", "independent"] = "shared"
    server_lr: float = 1.0
    momentum: float = 0.0
    importance: str = "samples"
    clip: float = 10.0
    watch: int = 500
    features: int = 0

    def __post_init__(self) -> None:
        typed.check(self)
        if self.rounds < 1 or self.epochs < 1:
            raise BadOption(f"rounds = {self.rounds}, epochs = {self.epochs}; give at least 1 of each")
        for name in ("select_options", "weigh_options", "fuse_options", "algorithm_options"):
            object.__setattr__(self, name, storage.plain(getattr(self, name)))

    def settings(self, recipe: TrainConfig, seed: int) -> Settings:
        """As the server takes them; `recipe` is the family's. Raises `BadOption` for what does not go together."""
        given: dict[str, Any] = {"batch_size": self.batch_size, "lr": self.lr, "momentum": self.local_momentum}
        if self.algorithm == "scaffold":
            given["momentum"] = self.local_momentum or 0.0
        changed = {name: value for name, value in given.items() if value is not None}
        train = dataclasses.replace(recipe, epochs=self.epochs, **changed)
        return Settings(
            (self.select, self.select_options),
            (self.weigh, self.weigh_options),
            Fusing(
                self.fuse,
                self.fuse_options,
                self.refit,
                self.repair,
                self.head,
                self.ridge,
                calibrate=self.calibrate,
                probe=self.probe_kind,
                match=self.match,
            ),
            Local(self.algorithm, self.algorithm_options, train, noise=self.noise),
            start=self.start,
            server_lr=self.server_lr,
            momentum=self.momentum,
            importance=self.importance,
            clip=self.clip,
            watch=self.watch,
            features=self.features,
            seed=seed,
        )


@dataclass(frozen=True)
class FederateConfig(RunSettings):
    """A data set dealt to clients, and the runs on it.

    Attributes:
        dataset: name of a data set.
        folder: folder with the user's copy of it, or empty.
        samples: training samples that are dealt to the clients, from the first on; 0 for all.
        task: registered name; none means the data set's.
        split: partition scheme: special-label, iid, dirichlet, client-dirichlet, shards, quantity.
        special: the label that only client A holds (special-label).
        alpha: concentration (Dirichlet splits).
        clients: number of clients.
        model: registered family of the clients.
        model_options: of the family.
        probe: unlabelled inputs on the server; 0 gives it none.
        seed: of partition, initialisation, selections and training.
        runs: by name, what differs from the settings above; none is one run of them.
    """

    dataset: str = "digits"
    folder: str = ""
    samples: int = 0
    task: str | None = None
    split: str = "dirichlet"
    special: int = 4
    alpha: float = 0.5
    clients: int = 10
    model: str = "mlp"
    model_options: Mapping[str, Any] = field(default_factory=dict)
    probe: int = 400
    seed: int = 0
    runs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, low in (("clients", 1), ("probe", 0), ("samples", 0)):
            if getattr(self, name) < low:
                raise BadOption(f"{name} = {getattr(self, name)}; give at least {low}")
        for name, values in self.runs.items():
            if not isinstance(values, Mapping):
                raise BadOption(f"runs = {{'{name}': {values!r}}}; give a table of settings for each run")
        for name in ("model_options", "runs"):
            object.__setattr__(self, name, storage.plain(getattr(self, name)))
        assert self.each

    @property
    def each(self) -> dict[str, RunSettings]:
        """The runs by name; raises `BadOption` for settings that a run does not have."""
        names = [item.name for item in dataclasses.fields(RunSettings)]
        shared = {name: getattr(self, name) for name in names}
        runs = self.runs or {self.fuse: {}}
        return {name: typed.read(RunSettings, {**shared, **own}, f"run '{name}'") for name, own in runs.items()}

    @property
    def scheme_options(self) -> dict[str, Any]:
        """Options of the partition scheme, those of ours that it takes."""
        taken = inspect.signature(schemes[self.split]).parameters
        return {name: getattr(self, name) for name in ("special", "alpha") if name in taken}

    @property
    def run_name(self) -> str:
        """Default name of the run folder."""
        return f"federate-{self.dataset}-{self.split}-{self.clients}-clients"

    @classmethod
    def from_toml(cls, path: Path | str) -> Self:
        """Read a configuration; raises `CorruptFile`, or `BadOption` with the offending key."""
        return typed.read(cls, storage.read_toml(path), f"'{path}'")
