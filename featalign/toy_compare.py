"""`fa.toy.compare`: clients with known features, every way to fuse them, and the truth beside each figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.optimize import linear_sum_assignment

from featalign.dictionaries import Dictionary, train_many
from featalign.errors import BadOption
from featalign.toy.features import Features, overlap
from featalign.toy.models import ToyConfig, ToyModels
from featalign.toy.training import Schedule, train
from featalign.toy.words import word_presence
from featalign.toy_methods import METHODS, ToyProblem

PROBE = 8192  # shared inputs for matching, per-client inputs for regression, and inputs for calibration
TEST = 20000
RECOVERED = 0.7  # correlation at which a latent counts as a true feature
SAME_WIDTH = tuple(name for name in METHODS if name != "union")


@dataclass(frozen=True)
class ToySettings:
    """Everything that decides a comparison.

    Attributes:
        data: 'features' (synthetic) or 'words' (word presence in Shakespeare's sentences).
        n, m: features and hidden units; `density` of each synthetic feature.
        clients: how many; `shared` features belong to all and the rest is dealt out evenly (None: all are shared).
        independent: whether clients start from their own initialisations.
        hidden: 'none' or 'relu'; `tied` decoders.
        split: for words, 'seeds' (all clients see all books) or 'books' (each sees its own).
        width: units of the fused model; None keeps m.
        seeds, first_seed: repetitions, and the number of the first.
        methods: names in the registry; None takes those that fit.
        steps, sae_steps: of training clients and dictionaries.
    """

    data: str = "features"
    n: int = 24
    m: int = 8
    density: float = 0.04
    clients: int = 2
    shared: int | None = None
    independent: bool = True
    hidden: str = "none"
    tied: bool = True
    split: str = "seeds"
    width: int | None = None
    seeds: int = 5
    first_seed: int = 0
    methods: tuple[str, ...] | None = None
    steps: int = 3000
    sae_steps: int | None = None

    def __post_init__(self) -> None:
        if self.data not in {"features", "words"}:
            raise BadOption(f"data '{self.data}'; choices: features, words")
        if self.split not in {"seeds", "books"}:
            raise BadOption(f"split '{self.split}'; choices: seeds, books")
        if self.clients < 2 or self.seeds < 1:
            raise BadOption(f"{self.clients} clients and {self.seeds} seeds; a comparison wants 2 clients and 1 seed")
        if not 0 < self.density <= 1:
            raise BadOption(f"density {self.density}; a probability in (0, 1]")
        if self.shared is not None and (self.n - self.shared) % self.clients:
            raise BadOption(f"{self.n - self.shared} own features cannot be dealt evenly to {self.clients} clients")
        for name in self.methods or ():
            METHODS[name]

    @property
    def fused_width(self) -> int:
        return self.width or self.m

    @property
    def latents(self) -> int:
        """Dictionary width: 1.33 times the features, the slack that finds them all."""
        return max(self.n + 4, round(4 * self.n / 3))

    @property
    def chosen(self) -> tuple[str, ...]:
        """Methods that will run."""
        if self.methods is not None:
            return self.methods
        return (*SAME_WIDTH, "union") if self.fused_width == self.m else ("union",)


@dataclass(frozen=True)
class ToyResult:
    """Figures of a comparison, one entry per seed in every list.

    Attributes:
        settings: what was run.
        single, joint: held-out loss of each client `[seeds][clients]` and of one model trained on everything `[seeds]`.
        losses: `method -> kind -> [seeds]`, kinds 'raw', 'calibrated' (bias and one gain on the task) and 'distilled'
            (the same, fitted to what each client returns on its own inputs, without the task).
        survival: `method -> [n]` share of each feature's energy that the calibrated model returns, mean over seeds.
        matching: per seed: neuron and feature correlation, precision, recall, recovered features.
        regimes: the diagnosis per seed.
        example: models and dictionaries of the first seed, for figures; not saved.
    """

    settings: ToySettings
    zero: float
    single: list[list[float]]
    joint: list[float]
    losses: dict[str, dict[str, list[float]]]
    survival: dict[str, list[float]]
    matching: list[dict[str, float]]
    regimes: list[dict[str, Any]]
    words: tuple[str, ...] = ()
    example: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """The JSON of `featalign toy compare --json`."""

        def mean(key: str) -> float:
            return float(np.mean([row[key] for row in self.matching]))

        names = [row["name"] for row in self.regimes]
        verdict = max(set(names), key=names.count)
        return {
            "config": asdict(self.settings),
            "zero": {"loss": self.zero},
            "joint": {"loss": spread(self.joint)},
            "single": {"loss": spread(np.mean(self.single, axis=1).tolist()), "values": self.single},
            "methods": {name: {kind: spread(v) for kind, v in kinds.items()} for name, kinds in self.losses.items()},
            "matching": {
                "neuron": {"mean_abs_corr": mean("neuron")},
                "feature": {
                    "mean_abs_corr": mean("feature"),
                    "precision": mean("precision"),
                    "recall": mean("recall"),
                    "true_pairs": [row["true_pairs"] for row in self.matching],
                    "false_pairs": [row["false_pairs"] for row in self.matching],
                },
                "mcc": mean("mcc"),
                "recovered": [row["recovered"] for row in self.matching],
            },
            "regime": {"name": verdict, "agreement": names.count(verdict) / len(names), "values": self.regimes},
            "winner": self.winner,
            "survival": self.survival,
        }  # fmt: skip

    @property
    def winner(self) -> str:
        """The method with the least calibrated loss."""
        return min(self.losses, key=lambda name: np.mean(self.losses[name]["calibrated"]))

    def to_frame(self) -> pd.DataFrame:
        """One row per method: mean loss of each kind, and the ratio of the calibrated one to joint training."""
        joint = float(np.mean(self.joint))
        rows = [
            {"method": name, **{kind: np.mean(v) for kind, v in kinds.items()}, "std": np.std(kinds["calibrated"])}
            for name, kinds in self.losses.items()
        ]
        frame = pd.DataFrame(rows).sort_values("calibrated", ignore_index=True)
        frame["times joint"] = frame["calibrated"] / joint
        return frame

    def rows(self) -> list[dict[str, Any]]:
        """`to_frame` with the parents and the ceiling beside the methods."""
        extra = [
            {"method": "(joint training)", "calibrated": float(np.mean(self.joint))},
            {"method": "(one client)", "calibrated": float(np.mean(self.single))},
        ]
        frame = pd.concat([pd.DataFrame(extra), self.to_frame()], ignore_index=True)
        frame["times joint"] = frame["calibrated"] / np.mean(self.joint)
        frame = frame[["method", "raw", "distilled", "calibrated", "std", "times joint"]].astype(object)
        records = frame.where(frame.notna(), "").to_dict(orient="records")
        return [{str(key): value for key, value in row.items()} for row in records]

    def summary(self) -> str:
        """The regime, matching and winner in three lines."""
        facts = self.to_dict()
        feature, regime = facts["matching"]["feature"], facts["regime"]
        common = self.settings.n if self.settings.shared is None else self.settings.shared
        return (
            f"matched |correlation|: neurons {facts['matching']['neuron']['mean_abs_corr']:.2f}, features "
            f"{feature['mean_abs_corr']:.2f}; true pairs {feature['true_pairs']} of {common}, "
            f"false {feature['false_pairs']}\n"
            f"regime: {regime['name']} ({regime['agreement']:.0%} of seeds), recommends "
            f"{self.regimes[0]['recommended']}: {self.regimes[0]['explanation']}\nbest method: {self.winner}"
        )

    def _repr_html_(self) -> str:
        return self.to_frame().to_html(index=False, float_format="{:.3f}".format)


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean, standard deviation and the values."""
    return {"mean": float(np.mean(values)), "std": float(np.std(values)), "values": [float(v) for v in values]}


def compare(
    settings: ToySettings | None = None, texts: Path | str | None = None, progress: bool = True, **options: Any
) -> ToyResult:
    """Train toy clients with known features, fuse them in every way, and score against the truth.

    Args:
        settings: or its fields as keywords: `compare(n=24, m=8, density=0.04, seeds=5)`.
        texts: folder of plain-text files for `data='words'` where there is no package registry.

    Losses are squared errors summed over features on held-out inputs. Raises `BadOption`, `UnknownName`,
    `DataUnavailable`. Source: methods.md 3; Elhage et al. 2022.
    """
    from tqdm.auto import tqdm

    settings = replace(settings or ToySettings(), **options)
    world = _words_world(settings, texts, progress) if settings.data == "words" else _feature_world(settings)
    clients = _train_clients(settings, world)
    joint = train(
        replace(world.config, m=settings.fused_width), world.law, range(500, 500 + settings.seeds), world.schedule
    )
    bases = _train_dictionaries(settings, world, clients)
    joint_losses = calibrated(joint, world.probe, world.probe).loss(world.test).tolist()
    runs = []
    for seed in tqdm(range(settings.seeds), disable=not progress, desc="fusing", unit="seed"):
        problem = ToyProblem(
            clients[seed], tuple(world.own), world.probe, tuple(bases[seed]), settings.fused_width,
            settings.latents, world.k, seed,
        )  # fmt: skip
        runs.append(_one_seed(settings, world, problem))
    losses = {name: {kind: [run["losses"][name][kind] for run in runs] for kind in KINDS} for name in settings.chosen}
    survival = {name: np.mean([run["survival"][name] for run in runs], axis=0).tolist() for name in settings.chosen}
    zero = float(world.test.pow(2).sum(1).mean())
    return ToyResult(
        settings, zero, [run["single"] for run in runs], joint_losses, losses, survival,
        [run["matching"] for run in runs], [run["regime"] for run in runs], world.words, runs[0]["example"],
    )  # fmt: skip


KINDS = ("raw", "calibrated", "distilled")


@dataclass(frozen=True)
class _World:
    """Laws and samples: the union's law, each client's law, probe, own and test inputs."""

    config: ToyConfig
    schedule: Schedule
    law: Any
    client_laws: list[Any]
    own: list[torch.Tensor]
    probe: torch.Tensor
    test: torch.Tensor
    masks: torch.Tensor
    k: float
    words: tuple[str, ...] = ()


def _feature_world(settings: ToySettings) -> _World:
    law = Features.uniform(settings.n, settings.density)
    shared = settings.n if settings.shared is None else settings.shared
    masks = overlap(settings.clients, (settings.n - shared) // settings.clients, shared)
    laws = [law.restricted(mask) for mask in masks]
    draw = [torch.Generator().manual_seed(10_000 + index) for index in range(settings.clients + 2)]
    return _World(
        ToyConfig(settings.n, settings.m, hidden=settings.hidden, tied=settings.tied),
        Schedule(settings.steps, 256, 5e-3),
        law,
        laws,
        [each.sample(PROBE, g) for each, g in zip(laws, draw[2:])],
        law.sample(PROBE, draw[0]),
        law.sample(TEST, draw[1]),
        masks,
        max(2, round(3 * settings.density * float(masks.sum(1).float().mean()))),
    )


def _words_world(settings: ToySettings, texts: Path | str | None, progress: bool) -> _World:
    from featalign.data.text import shakespeare

    words = word_presence(shakespeare(folder=texts, progress=progress), settings.n)
    rows = [torch.arange(len(words.train))] * settings.clients
    if settings.split == "books":
        rows = [torch.nonzero(words.work % settings.clients == index).flatten() for index in range(settings.clients)]
    draw = torch.Generator().manual_seed(10_000)
    return _World(
        ToyConfig(settings.n, settings.m, hidden=settings.hidden, tied=settings.tied),
        Schedule(settings.steps, 256, 5e-3),
        words.batches(),
        [words.batches(each) for each in rows],
        [words.batches(each)(2 * PROBE, draw) for each in rows],
        words.batches()(2 * PROBE, draw),
        words.test,
        torch.ones(settings.clients, settings.n, dtype=torch.bool),
        4,
        words.vocabulary,
    )


def _train_clients(settings: ToySettings, world: _World) -> list[ToyModels]:
    """`[seeds]` batches of `clients` models; shared laws train in one program."""
    found = []
    for index, law in enumerate(world.client_laws):
        order = range(settings.first_seed, settings.first_seed + settings.seeds)
        starts = [1000 * seed + (index if settings.independent else 0) for seed in order]
        found.append(train(world.config, law, starts, world.schedule, data_seed=index))
    return [ToyModels.stack([batch[seed] for batch in found]) for seed in range(settings.seeds)]


def _train_dictionaries(settings: ToySettings, world: _World, clients: list[ToyModels]) -> list[list[Dictionary]]:
    """One per seed and client, on the client's own inputs; all of them in one program."""
    draw = torch.Generator().manual_seed(77)
    samples = 20_000 if settings.data == "features" else 60_000
    inputs = [
        law.sample(samples, draw) if isinstance(law, Features) else law(samples, draw) for law in world.client_laws
    ]
    activations = [models[c].hidden(inputs[c])[0] for models in clients for c in range(settings.clients)]
    facts = [{"client": f"client{c}", "space": "hidden"} for _ in clients for c in range(settings.clients)]
    steps = settings.sae_steps or (1200 if settings.data == "features" else 3000)
    trained = train_many(activations, "topk", (0,), facts, k=world.k, width=settings.latents, steps=steps)
    flat = [row[0] for row in trained]
    return [flat[i : i + settings.clients] for i in range(0, len(flat), settings.clients)]


def _one_seed(settings: ToySettings, world: _World, problem: ToyProblem) -> dict[str, Any]:
    fused = ToyModels.stack([METHODS[name](problem) for name in settings.chosen])
    own = torch.cat(problem.data)
    taught = torch.cat([problem.clients[c](x)[0] for c, x in enumerate(problem.data)])
    kinds = {
        "raw": fused,
        "calibrated": calibrated(fused, world.probe, world.probe),
        "distilled": calibrated(fused, own, taught),
    }
    scores = {kind: models.loss(world.test).tolist() for kind, models in kinds.items()}
    energy = world.test.double().pow(2).mean(0)
    kept = (1 - kinds["calibrated"].loss_per_feature(world.test) / energy.clamp_min(1e-12)).clamp(0, 1)
    singles = calibrated(problem.clients, world.probe, world.probe).loss(world.test)
    return {
        "losses": {name: {kind: scores[kind][i] for kind in KINDS} for i, name in enumerate(settings.chosen)},
        "survival": {name: kept[i].tolist() for i, name in enumerate(settings.chosen)},
        "single": singles.tolist(),
        "matching": _matching(world, problem),
        "regime": problem.regime.to_dict(),
        "example": {
            "problem": problem,
            "fused": dict(zip(settings.chosen, range(len(settings.chosen)))),
            "models": fused,
        },
    }


def _matching(world: _World, problem: ToyProblem) -> dict[str, float]:
    """Matched pairs of the second client and the reference against the truth."""
    match = problem.match(1)
    truth, scores = [], []
    for client in (1, 0):
        codes = problem.dictionaries[client].encode(problem.hidden[client])
        known = world.masks[client]
        found = correlation(codes, world.probe) * known
        truth.append(found.abs().argmax(1))
        rows, columns = linear_sum_assignment(-found.numpy())
        best = found[rows, columns][known[torch.from_numpy(columns)]]
        scores.append((float(best.mean()), int((best > RECOVERED).sum())))
    same = truth[0][match.pairs[:, 0]] == truth[1][match.pairs[:, 1]]
    true_pairs = len({int(f) for f, ok in zip(truth[0][match.pairs[:, 0]], same) if ok})
    common = int((world.masks[0] & world.masks[1]).sum())
    return {
        "neuron": problem.regime.neuron_correlation,
        "feature": float(match.scores.mean()) if len(match.scores) else 0.0,
        "true_pairs": true_pairs,
        "false_pairs": int((~same).sum()),
        "precision": float(same.double().mean()) if len(same) else 0.0,
        "recall": true_pairs / max(common, 1),
        "mcc": float(np.mean([score for score, _ in scores])),
        "recovered": float(np.mean([count for _, count in scores])),
    }


def correlation(codes: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Pearson `[F, n]` of codes and true features."""
    a, b = codes - codes.mean(0), truth - truth.mean(0)
    scale = torch.outer(a.norm(dim=0), b.norm(dim=0))
    return torch.where(scale > 1e-9, a.T @ b / scale.clamp_min(1e-9), 0.0)


def calibrated(
    models: ToyModels, x: torch.Tensor, target: torch.Tensor, steps: int = 250, lr: float = 0.03
) -> ToyModels:
    """The models with output bias and one gain refitted to `target [samples, n]` by Adam on batches of 1024."""
    log_gain = torch.zeros(len(models), 1, 1, requires_grad=True)
    bias = models.bias[:, None].clone().requires_grad_()
    optimiser = torch.optim.Adam([log_gain, bias], lr=lr)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.02, steps)
    draw = torch.Generator().manual_seed(0)
    relu = models.config.output == "relu"
    for _ in range(steps):
        rows = torch.randint(len(x), (1024,), generator=draw)
        out = log_gain.exp() * (models.hidden(x[rows]) @ models.decoder.mT) + bias
        loss = ((out.relu() if relu else out) - target[rows]).pow(2).sum(2).mean(1).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    root = log_gain.detach().exp().sqrt()
    return ToyModels(models.config, models.encoder * root, models.decoder * root, bias.detach()[:, 0])
