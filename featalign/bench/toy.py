"""Toy models trained together against one by one."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import nn

from featalign.toy import Features, Schedule, ToyConfig, train


def training_benchmark(models: int = 400, n: int = 20, m: int = 5, steps: int = 3000, alone: int = 8) -> dict[str, Any]:
    """Seconds for `models` toy models in one program, and extrapolated from `alone` trained one by one.

    One by one is measured twice: with this package's trainer, and with the plain loop people write (an `nn.Module`,
    autograd, `torch.optim.Adam`). Losses are held out; data, steps and batch size are equal.
    """
    law, schedule = Features.uniform(n, 0.1), Schedule(steps, 256, 5e-3)
    test = law.sample(10_000, torch.Generator().manual_seed(9))
    start = time.perf_counter()
    together = train(ToyConfig(n, m), law, range(models), schedule)
    batched = time.perf_counter() - start
    start = time.perf_counter()
    single = [train(ToyConfig(n, m), law, (seed,), schedule).loss(test).item() for seed in range(alone)]
    own = (time.perf_counter() - start) * models / alone
    start = time.perf_counter()
    plain = [_plain(law, n, m, schedule, seed, test) for seed in range(alone)]
    loop = (time.perf_counter() - start) * models / alone
    return {
        "models": models,
        "steps": steps,
        "seconds": {"together": batched, "one_by_one": own, "plain_loop": loop},
        "ratio": {"one_by_one": own / batched, "plain_loop": loop / batched},
        "loss": {
            "together": float(together.loss(test).mean()),
            "one_by_one": sum(single) / alone,
            "plain_loop": sum(plain) / alone,
        },
    }


def _plain(law: Features, n: int, m: int, schedule: Schedule, seed: int, test: torch.Tensor) -> float:
    """One model by autograd."""
    draw = torch.Generator().manual_seed(seed)
    weight = nn.Parameter(torch.randn(m, n, generator=draw) / n**0.5)
    bias = nn.Parameter(torch.zeros(n))
    optimiser = torch.optim.Adam([weight, bias], lr=schedule.lr)
    decay = schedule.decay * schedule.steps
    anneal = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: min(1.0, (schedule.steps - step) / decay))
    for _ in range(schedule.steps):
        x = law.sample(schedule.batch_size, draw)
        loss = ((x @ weight.T @ weight + bias).relu() - x).pow(2).sum(1).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        anneal.step()
    with torch.no_grad():
        return float(((test @ weight.T @ weight + bias).relu() - test).pow(2).sum(1).mean())
