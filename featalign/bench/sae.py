"""`featalign bench sae`: seconds to one held-out explained variance, and planted dictionaries, against sae-lens.

Both libraries get the same activations, split, architecture, width, k, warm-up and decay; each is timed at three batch
sizes and three learning rates and judged at its best. Evaluation is outside both clocks.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch

from featalign.dictionaries import Dictionary, assess, train_many
from featalign.dictionaries.architectures import ARCHITECTURES as REGISTERED
from featalign.dictionaries.reference import train_with_sae_lens
from featalign.dictionaries.trainer import Plan, Trainer, held_out
from featalign.measure.scores import match_scores

SHAPES = ((64, 256, 8), (128, 512, 12), (512, 2048, 24))
BATCHES = (256, 512, 1024)
RATES = (1e-2, 5e-3, 2e-3)
TOLERANCE = 0.01
TUNING_SEEDS = (100, 101)  # choose the sparsity of penalised architectures
COEFFICIENTS = (0.3, 1.0, 3.0, 10.0)  # of sae-lens's penalties
SPARSITIES = (0.6, 0.8, 1.0, 1.4)  # L0 that featalign steers to
ARCHITECTURES = ("topk", "batchtopk", "matryoshka", "relu", "jumprelu", "gated")


def planted(
    features: int, units: int, samples: int, active: float, noise: float = 0.0, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sparse features in superposition: `(truth [features, units], activations [samples, units])`.

    Each feature is on with probability `active / features`, at a strength uniform in [0.5, 1.5].
    """
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randn(features, units, generator=generator)
    truth /= truth.norm(dim=1, keepdim=True)
    on = torch.rand(samples, features, generator=generator) < active / features
    codes = on * (0.5 + torch.rand(samples, features, generator=generator))
    return truth, codes @ truth + noise * torch.randn(samples, units, generator=generator)


def speed(
    shapes: Sequence[tuple[int, int, int]] = SHAPES, samples: int = 20_000, passes: int = 10
) -> list[dict[str, Any]]:
    """A row per shape: seconds to 99 % of the lower of the two best explained variances, and their ratio."""
    rows = []
    for units, width, k in shapes:
        _, activations = planted(3 * width // 4, units, samples, 0.75 * k, noise=0.05)
        curves: dict[str, list[tuple[Plan, list[tuple[float, float]]]]] = {"featalign": [], "sae-lens": []}
        for batch, lr in itertools.product(BATCHES, RATES):
            plan = Plan("topk", width, k, passes * samples // batch, batch, lr)
            curves["featalign"].append((plan, _own_curve(activations, plan)))
            curves["sae-lens"].append((plan, _reference_curve(activations, plan)))
        finals = {name: max(curve[-1][1] for _, curve in runs) for name, runs in curves.items()}
        target = (1 - TOLERANCE) * min(finals.values())
        best = {name: _fastest(runs, target) for name, runs in curves.items()}
        row: dict[str, Any] = {"units": units, "width": width, "k": k, "target": target}
        for name, (seconds, plan) in best.items():
            row |= {f"{name} seconds": seconds, f"{name} batch": plan.batch_size, f"{name} lr": plan.lr}
            row |= {f"{name} final": finals[name]}
        rows.append({**row, "ratio": row["sae-lens seconds"] / row["featalign seconds"]})
    return rows


def _fastest(runs: list[tuple[Plan, list[tuple[float, float]]]], target: float) -> tuple[float, Plan]:
    """The run that reaches the target first; every target is below the best end of each library."""
    reached = [(seconds, plan) for plan, curve in runs for seconds, ev in curve if ev >= target]
    return min(reached, key=lambda entry: entry[0])


def _split(activations: torch.Tensor) -> torch.Tensor:
    order = torch.randperm(len(activations), generator=torch.Generator().manual_seed(0))
    return activations[order[: held_out(len(activations))]]


def _own_curve(activations: torch.Tensor, plan: Plan) -> list[tuple[float, float]]:
    held = _split(activations)
    trainer = Trainer(plan, [activations], [activations], [{}], [0])
    spent, curve, every = 0.0, [], max(1, plan.steps // 40)
    with torch.no_grad():
        for step in range(plan.steps):
            start = time.perf_counter()
            trainer.advance()
            spent += time.perf_counter() - start
            if step % every == every - 1 or step == plan.steps - 1:
                curve.append((spent, assess(trainer.current(0), held, held).explained_variance))
    return curve


def _reference_curve(activations: torch.Tensor, plan: Plan) -> list[tuple[float, float]]:
    held = _split(activations)
    rows = torch.randperm(len(activations), generator=torch.Generator().manual_seed(0))[held_out(len(activations)) :]
    mean = activations[rows].mean(0)
    x = (held - mean) / (activations[rows] - mean).pow(2).mean().sqrt()

    def evaluate(sae: Any, step: int) -> float:
        with torch.no_grad():
            error = (sae(x) - x).pow(2).sum()
        return float(1 - error / (x - x.mean(0)).pow(2).sum())

    return train_with_sae_lens(activations, plan, 0, {}, evaluate).curve


def recovery(
    architectures: Sequence[str] = ARCHITECTURES, seeds: Sequence[int] = range(8), steps: int = 4000, lr: float = 1e-2
) -> list[dict[str, Any]]:
    """Planted dictionary of 24 features in 8 dimensions, width 32: mean MCC of each architecture in both libraries.

    Of penalised architectures each library gets the sparsity that serves it best on two other seeds.
    """
    truth, activations = planted(24, 8, 30_000, 1.0)
    rows = []
    for name in architectures:
        k = 2.0 if name == "topk" else 1.5
        plan = Plan(name, 32, k, steps, 512, lr)

        def own(wanted: float, seeds: Sequence[int], name: str = name) -> list[Dictionary]:
            options: dict[str, Any] = {"width": 32, "k": wanted, "steps": steps, "batch_size": 512, "lr": lr}
            return train_many([activations], name, seeds, **options)[0]

        def rival(coefficient: float, seeds: Sequence[int], plan: Plan = plan) -> list[Dictionary]:
            return [train_with_sae_lens(activations, plan, s, {}, None, coefficient).dictionary for s in seeds]

        row: dict[str, Any] = {"architecture": name}
        for library, run, choices in (("featalign", own, SPARSITIES), ("sae-lens", rival, COEFFICIENTS)):
            if REGISTERED[name].steered:
                best = max(choices, key=lambda choice: _mcc(truth, run(choice, TUNING_SEEDS)))
            else:
                best = k if library == "featalign" else 1.0
            found = run(best, seeds)
            row[f"{library} MCC"] = _mcc(truth, found)
            row[f"{library} L0"] = sum(d.quality.l0 for d in found if d.quality) / len(found)
        rows.append(row)
    return rows


def _mcc(truth: torch.Tensor, found: list[Dictionary]) -> float:
    return sum(match_scores(truth, d.atoms).mcc for d in found) / len(found)


def frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Rows as a table."""
    return pd.DataFrame(rows)
