"""sae-lens's own trainer on the same data, for comparison."""

from __future__ import annotations

import contextlib
import io
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from featalign.dictionaries.architectures import ARCHITECTURES
from featalign.dictionaries.dictionary import Dictionary
from featalign.dictionaries.loading import load
from featalign.dictionaries.quality import assess
from featalign.dictionaries.trainer import Plan, held_out
from featalign.errors import BadOption


@dataclass(frozen=True)
class ReferenceRun:
    """A dictionary trained by sae-lens and its explained variance along training time."""

    dictionary: Dictionary
    curve: list[tuple[float, float]]  # seconds of training, held-out explained variance


def train_with_sae_lens(
    activations: torch.Tensor,
    plan: Plan,
    seed: int,
    metadata: Mapping[str, Any],
    evaluate: Callable[[Any, int], float] | None = None,
    coefficient: float = 1.0,
) -> ReferenceRun:
    """Run `sae_lens.SAETrainer` with the same split, batch size, steps, learning rate and decay.

    Inputs are centred and scaled for it too; everything else is sae-lens's own default. `evaluate(sae, step)` is called
    40 times per run outside the clock. `coefficient` weighs the penalty of relu, jumprelu and gated.
    """
    with contextlib.redirect_stderr(io.StringIO()):
        from sae_lens.config import SAETrainerConfig
        from sae_lens.training.sae_trainer import SAETrainer

    torch.manual_seed(seed)
    order = torch.randperm(len(activations), generator=torch.Generator().manual_seed(0))
    keep = held_out(len(activations))
    rows = order[keep:]
    mean = activations[rows].mean(0)
    scale = float((activations[rows] - mean).pow(2).mean().sqrt())
    x = (activations[rows] - mean) / scale
    sae = _training_sae(plan, activations.shape[1], coefficient)
    samples = plan.steps * plan.batch_size
    config = SAETrainerConfig(
        total_training_samples=samples, train_batch_size_samples=plan.batch_size, lr=plan.lr, lr_end=plan.lr / 1000,
        lr_decay_steps=int(0.3 * plan.steps), lr_warm_up_steps=min(50, plan.steps // 20),
        dead_feature_window=max(20, plan.steps // 20), feature_sampling_window=plan.steps + 1,
    )  # fmt: skip
    trainer = SAETrainer(config, sae, _provider(x, plan.batch_size, seed))
    spent, curve, every = 0.0, [], max(1, plan.steps // 40)
    for step in range(plan.steps):
        start = time.perf_counter()
        trainer.step(next(trainer.data_provider))
        trainer.n_training_steps += 1
        spent += time.perf_counter() - start
        if evaluate is not None and (step % every == every - 1 or step == plan.steps - 1):
            curve.append((spent, evaluate(sae, step)))
    with tempfile.TemporaryDirectory() as folder:
        sae.save_inference_model(folder)
        bare = load(folder)
    dictionary = _denormalised(bare, mean, scale, {"seed": seed, "trainer": "sae-lens", **metadata})
    quality = assess(dictionary, activations, activations, order[:keep])
    return ReferenceRun(
        Dictionary(dictionary.architecture, dictionary.tensors, dictionary.k, quality, metadata=dictionary.metadata),
        curve,
    )


def _provider(x: torch.Tensor, batch: int, seed: int) -> Iterator[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        for rows in torch.randperm(len(x), generator=generator).split(batch):
            if len(rows) == batch:
                yield x[rows]


def _training_sae(plan: Plan, units: int, coefficient: float) -> Any:
    from sae_lens.registry import get_sae_training_class

    found = ARCHITECTURES[plan.architecture].reference(plan.width, plan.k, coefficient)
    if found is None:
        raise BadOption(f"architecture '{plan.architecture}' has no trainer in sae-lens; use trainer='featalign'")
    name, options = found
    build, configure = get_sae_training_class(name)
    return build(configure(d_in=units, d_sae=plan.width, **options))


def _denormalised(bare: Dictionary, mean: torch.Tensor, scale: float, metadata: dict[str, Any]) -> Dictionary:
    tensors = dict(bare.tensors)
    tensors["b_dec"] = tensors["b_dec"] * scale + mean
    for name in {*bare.design.latents} - {*bare.design.unitless}:
        tensors[name] = tensors[name] * scale
    return Dictionary(bare.architecture, tensors, bare.k, metadata=metadata)
