"""`fa.toy.compare`: clients with known features, every way to fuse them, and the truth beside each figure."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from featalign.dictionaries import Dictionary, train_many
from featalign.toy.features import Features
from featalign.toy.models import ToyModels
from featalign.toy.training import train
from featalign.toy_fusion.methods import METHODS, ToyProblem
from featalign.toy_fusion.result import ToyResult
from featalign.toy_fusion.world import ToySettings, World, feature_world, words_world

RECOVERED = 0.7  # correlation at which a latent counts as a true feature
KINDS = ("raw", "calibrated", "distilled")


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

    settings = replace(settings, **options) if settings else ToySettings(**options)
    world = words_world(settings, texts, progress) if settings.data == "words" else feature_world(settings)
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


def _train_clients(settings: ToySettings, world: World) -> list[ToyModels]:
    """`[seeds]` batches of `clients` models; shared laws train in one program."""
    found = []
    for index, law in enumerate(world.client_laws):
        order = range(settings.first_seed, settings.first_seed + settings.seeds)
        starts = [1000 * seed + (index if settings.independent else 0) for seed in order]
        found.append(train(world.config, law, starts, world.schedule, data_seed=index))
    return [ToyModels.stack([batch[seed] for batch in found]) for seed in range(settings.seeds)]


def _train_dictionaries(settings: ToySettings, world: World, clients: list[ToyModels]) -> list[list[Dictionary]]:
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


def _one_seed(settings: ToySettings, world: World, problem: ToyProblem) -> dict[str, Any]:
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


def _matching(world: World, problem: ToyProblem) -> dict[str, float]:
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
