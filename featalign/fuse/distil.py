"""A few gradient steps from the closed form: the whole fused network towards the ensemble, on the refit inputs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from featalign.data.batch import Batch, unwrap
from featalign.data.inputs import Inputs
from featalign.fuse.problem import FusionProblem
from featalign.fuse.readout import AGREED, readout_target
from featalign.spaces.capture import evaluating, kept, units_last

BATCH = 64
RATE = 4e-3  # of Adam, falling to zero by a cosine
HELD = 50_000_000  # targets kept in memory; beyond it the clients are run for every batch


def distil(problem: FusionProblem, fused: nn.Module, steps: int, head: str | None = None) -> list[float]:
    """Move `fused` in place by `steps` steps of Adam on the head's loss, and return the loss of every step.

    Normalisations keep their statistics. Batches on which it says what it should already move nothing, so that a
    network fused with itself stays as it is. Source: Hinton, Vinyals and Dean 2015, without labels.
    """
    task, generator = problem.cohort.task, torch.Generator().manual_seed(problem.cohort.seed)
    convolves = any(writer.readout and writer.convolves(fused) for writer in problem.writers)
    losses: list[float] = []
    with evaluating(fused), _trainable(fused) as trained:
        search = torch.optim.Adam(trained, lr=RATE)
        told = _with_targets(problem, head, convolves)
        inputs = told or problem.cohort.refit_inputs
        while len(losses) < steps:
            for batch in inputs.epoch(BATCH, generator):
                wanted = batch.targets.flatten(0, 1) if told else _wanted(problem, batch, head, convolves)
                with torch.enable_grad():
                    said = _rows(fused, batch, convolves)
                    loss = task.head_loss(said, wanted.to(said)).mean()
                if bool((said.detach() - wanted).abs().amax() > AGREED * wanted.abs().amax()):
                    search.param_groups[0]["lr"] = RATE * (1 + math.cos(math.pi * len(losses) / steps)) / 2
                    search.zero_grad()
                    loss.backward()
                    search.step()
                losses.append(float(loss.detach()))
                if len(losses) == steps:
                    break
    return losses


@contextmanager
def _trainable(module: nn.Module) -> Iterator[list[nn.Parameter]]:
    """Its parameters, all taking gradients inside."""
    parameters = list(module.parameters())
    frozen = [parameter for parameter in parameters if not parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        yield parameters
    finally:
        for parameter in parameters:
            parameter.grad = None
        for parameter in frozen:
            parameter.requires_grad_(False)


def _with_targets(problem: FusionProblem, head: str | None, convolves: bool) -> Inputs | None:
    """The refit inputs with their targets `[samples, rows, outputs]`, where these are small and as many for each."""
    inputs = problem.cohort.refit_inputs
    example = problem.cohort.example
    out = unwrap(example.run(problem.clients[problem.reference]))
    if example.mask is not None or out.numel() // len(out) * len(inputs) > HELD:
        return None
    found = [_wanted(problem, batch, head, convolves).reshape(batch.size, -1, out.shape[1 if convolves else -1])
             for batch in inputs]  # fmt: skip
    return inputs.with_targets(torch.cat(found))


def _wanted(problem: FusionProblem, batch: Batch, head: str | None, convolves: bool) -> torch.Tensor:
    rows = []
    for module in problem.clients:
        with evaluating(module):
            rows.append(_rows(module, batch, convolves))
    return readout_target(problem, rows, head).to(rows[0])


def _rows(module: Any, batch: Batch, convolves: bool) -> torch.Tensor:
    """Outputs `[rows, outputs]`, without padded tokens."""
    return units_last(kept(unwrap(batch.run(module)), batch.mask), convolves)
