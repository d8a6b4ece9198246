"""`fa.studies.toy.compare`: clients with known features, every way to fuse them, and the truth beside each figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from featalign import storage
from featalign.align.regime import Regime, regime
from featalign.clients import Cohort
from featalign.dictionaries import Dictionary, train_many
from featalign.errors import BadOption
from featalign.fuse import METHODS, FusionProblem, available, solve
from featalign.spaces import apply_nonlinearity
from featalign.studies.toy.config import SHOWN, ToySettings
from featalign.studies.toy.result import MethodRow, RegimeRow, Score, SurvivalRow, ToyResult
from featalign.studies.toy.truth import matching
from featalign.studies.toy.world import World, world_of
from featalign.toy.features import Features
from featalign.toy.models import ToyModels
from featalign.toy.task import Reconstruction
from featalign.toy.training import train

JOINT_SEEDS = 500  # number of the first seed of joint training


def compare(
    settings: ToySettings | None = None, texts: Path | str | None = None, progress: bool = True, **options: Any
) -> ToyResult:
    """Train toy clients with known features, fuse them by every method, and score against the truth.

    Args:
        settings: or its fields as keywords: `compare(n=24, m=8, density=0.04, seeds=5)`.
        texts: folder of plain-text files for `data='words'` where there is no package registry.

    Losses are squared errors summed over features on held-out inputs, in three stages: raw; calibrated (output bias and
    one gain fitted to the task on the probe); distilled (the same, fitted to what each client returns on its own
    inputs, without the task). Raises `BadOption`, `UnknownName`, `DataUnavailable`. Source: Elhage et al. 2022.
    """
    from tqdm.auto import tqdm

    settings = replace(settings, **options) if settings else ToySettings(**options)
    for name in (*settings.methods, *settings.options):
        METHODS[name].bind(settings.options.get(name, {}), name)
    world = world_of(settings, texts, progress)
    clients = _train_clients(settings, world)
    joint = train(
        replace(world.config, m=settings.fused_width),
        world.law,
        range(JOINT_SEEDS, JOINT_SEEDS + settings.seeds),
        world.schedule,
    )
    bases = _train_dictionaries(settings, world, clients)
    joint_losses = calibrated(joint, world.probe, world.probe).loss(world.test).tolist()
    runs = [
        _OneSeed(settings, world, seed, clients[seed], bases[seed])
        for seed in tqdm(range(settings.seeds), disable=not progress, desc="fusing", unit="seed")
    ]
    scores = [Score(seed, "joint training", "", "joint", loss) for seed, loss in enumerate(joint_losses)]
    frames: dict[str, Any] = {
        "scores": scores + [score for run in runs for score in run.scores],
        "methods": runs[0].methods,
        "matching": [run.matching for run in runs],
        "regimes": [RegimeRow.of(run.seed, run.regime) for run in runs],
        "survival": [row for run in runs for row in run.survival],
    }
    facts = {"zero": float(world.test.pow(2).sum(1).mean()), "words": list(world.words), "versions": storage.versions()}
    return ToyResult(settings, frames, facts, example={"problem": runs[0].problem, "fused": runs[0].fused})


def problem_of(
    clients: ToyModels, data: Sequence[torch.Tensor], probe: torch.Tensor, bases: Sequence[Dictionary], seed: int = 0
) -> FusionProblem:
    """Toy clients as a fusion problem: the task is reconstruction, the first client the reference."""
    cohort = Cohort.of(clients.modules(), probe, task=Reconstruction(), data=list(data), seed=seed)
    space = cohort.graphs[0].hidden[0].name
    return FusionProblem(cohort, reference=0, dictionaries={space: tuple(bases)})


class _OneSeed:
    """The comparison of one seed."""

    def __init__(self, settings: ToySettings, world: World, seed: int, clients: ToyModels, bases: Sequence[Dictionary]):
        self.settings, self.world, self.seed, self.clients = settings, world, seed, clients
        self.problem = problem_of(clients, world.own, world.probe, bases, seed)
        self.methods = self._choose()
        chosen = [row.method for row in self.methods if row.available]
        if not chosen:
            raise BadOption(f"no method is possible here: {self.methods[0].method}: {self.methods[0].reason}")
        self.fused = {name: solve(self.problem, name, repair=False, **self._options(name)).module for name in chosen}
        self.regime = self._regime()
        self.scores, self.survival = self._score()
        self.matching = matching(seed, self.problem, world.masks, world.probe, self.regime)

    def _options(self, name: str) -> dict[str, Any]:
        width = {"width": self.settings.fused_width} if "width" in METHODS[name].options else {}
        return {**width, **self.settings.options.get(name, {})}

    def _choose(self) -> list[MethodRow]:
        """Methods asked for; without any, those shown that the clients and the fused width allow."""
        named, possible = self.settings.methods, available(self.problem)
        wider = self.settings.fused_width > self.settings.m
        rows = []
        for name in named or SHOWN:
            entry, reason = METHODS[name], possible[name] or ""
            if wider and "width" not in entry.options:
                reason = f"it keeps the clients' {self.settings.m} units, and {self.settings.fused_width} are asked for"
            if reason and named:
                able = ", ".join(other for other in SHOWN if possible[other] is None)
                raise BadOption(f"method '{name}' is not possible here: {reason}; possible: {able}")
            rows.append(MethodRow(name, entry.basis, entry.summary, not reason, reason))
        return rows

    def _score(self) -> tuple[list[Score], list[SurvivalRow]]:
        world, problem = self.world, self.problem
        fused = ToyModels.of(list(self.fused.values()))
        taught = torch.cat([self.clients[c](x)[0] for c, x in enumerate(world.own)])
        stages = {
            "raw": fused,
            "calibrated": calibrated(fused, world.probe, world.probe),
            "distilled": calibrated(fused, torch.cat(world.own), taught),
        }
        scores = [
            Score(self.seed, name, name, stage, loss)
            for stage, models in stages.items()
            for name, loss in zip(self.fused, models.loss(world.test).tolist())
        ]
        alone = calibrated(self.clients, world.probe, world.probe).loss(world.test).tolist()
        scores += [Score(self.seed, f"client {n}", "", "client", loss) for n, loss in zip(problem.cohort.names, alone)]
        energy = world.test.double().pow(2).mean(0).clamp_min(1e-12)
        kept = (1 - stages["calibrated"].loss_per_feature(world.test) / energy).clamp(0, 1)
        survival = [
            SurvivalRow(self.seed, name, feature, share)
            for name, shares in zip(self.fused, kept.tolist())
            for feature, share in enumerate(shares)
        ]
        return scores, survival

    def _regime(self) -> Regime:
        """How the second client's code relates to the reference's."""
        problem, clients = self.problem, self.clients
        space = problem.graph.hidden[0]
        hidden, bases = clients.hidden(self.world.probe), problem.dictionaries[space.name]
        return regime(
            hidden[1], hidden[0], bases[1], bases[0], space.symmetry, pre=clients.pre(self.world.probe)[1],
            apply=lambda pre: apply_nonlinearity(space, pre), seed=self.seed,
        )  # fmt: skip


def _train_clients(settings: ToySettings, world: World) -> list[ToyModels]:
    """`[seeds]` batches of `clients` models; the models of one law train in one program."""
    found = []
    for index, law in enumerate(world.client_laws):
        order = range(settings.first_seed, settings.first_seed + settings.seeds)
        starts = [1000 * seed + (index if settings.independent else 0) for seed in order]
        found.append(train(world.config, law, starts, world.schedule, data_seed=index))
    return [ToyModels.stack([batch[seed] for batch in found]) for seed in range(settings.seeds)]


def _train_dictionaries(settings: ToySettings, world: World, clients: list[ToyModels]) -> list[list[Dictionary]]:
    """One per seed and client, on the client's own inputs; all of them in one program."""
    draw = torch.Generator().manual_seed(77)
    laws = [law.sample if isinstance(law, Features) else law for law in world.client_laws]
    inputs = [law(world.samples, draw) for law in laws]
    activations = [models[c].hidden(x)[0] for models in clients for c, x in enumerate(inputs)]
    facts: list[Mapping[str, Any]] = [
        {"client": f"client{c}", "space": "encoder"} for _ in clients for c in range(settings.clients)
    ]
    wanted: dict[str, Any] = {"k": world.k, "width": settings.latents, "steps": settings.dictionary_steps}
    flat = [row[0] for row in train_many(activations, "topk", (0,), facts, **wanted)]
    return [flat[i : i + settings.clients] for i in range(0, len(flat), settings.clients)]


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
