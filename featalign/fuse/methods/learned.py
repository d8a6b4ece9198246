"""Learned matching: alignments chosen by gradient on what the averaged network does on the probe, without labels."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import nn

from featalign.align.learned import LearnedSymmetries
from featalign.align.maps import Alignment
from featalign.align.matchers import align
from featalign.data.batch import Batch, unwrap
from featalign.data.inputs import Inputs
from featalign.data.task import Task
from featalign.errors import BadOption
from featalign.fuse.methods.registry import Proposal, fusion_method
from featalign.fuse.problem import FusionProblem
from featalign.fuse.rule import identity_alignment

SAME = 1e-6  # divergence of an average from the ensemble below which there is nothing to learn
EVALUATED = 256  # inputs per batch where nothing is learned
NORMS = nn.modules.batchnorm._BatchNorm


@fusion_method("learned", basis="neuron", needs=("equal-widths",), default=False)
def learned(
    problem: FusionProblem,
    *,
    start: str = "procrustes-wts",
    updates: int = 400,
    lr: float = 0.02,
    temperature: float = 0.5,
    batch: int = 32,
    spread: float = 0.5,
) -> Proposal:
    """Permutations and rotations learned by gradient: the average is to do what the ensemble does on the probe.

    Every client is aligned to the reference by the matcher `start`; then `updates` of Adam at rate `lr`, on `batch`
    inputs each, lower the divergence of `(1 - t) B + t S(A)` from the ensemble of both at the same weights, `t` drawn
    within `spread / 2` of one half. What comes back are exact symmetries. Source: Theus et al. 2025, with the ensemble
    in place of labels.
    """
    for name, value, low in (("updates", updates, 0), ("batch", batch, 1)):
        if value < low:
            raise BadOption(f"{name} = {value} of 'learned'; give at least {low}")
    if not (lr > 0 and temperature > 0 and 0 <= spread <= 1):
        raise BadOption(f"lr = {lr}, temperature = {temperature}, spread = {spread}; give positive ones, spread to 1")
    alignments, divergence = [], {}
    for k in range(len(problem.cohort)):
        if k == problem.reference:
            alignments.append(identity_alignment(problem))
            continue
        first = align(problem.pair(k), start)
        found, divergence[problem.cohort.names[k]] = _learn(problem, k, first, updates, lr, temperature, batch, spread)
        alignments.append(found)
    return Proposal(tuple(alignments), notes={"divergence": divergence})


def _learn(
    problem: FusionProblem,
    client: int,
    start: Alignment,
    updates: int,
    lr: float,
    temperature: float,
    batch: int,
    spread: float,
) -> tuple[Alignment, dict[str, float]]:
    """The learned alignment of a client (the start where it is no better on the whole probe), and both divergences."""
    source, target = problem.clients[client], problem.clients[problem.reference]
    symmetries = LearnedSymmetries(source, problem.graphs[client], start, temperature).train()
    network, task = _Averaged(source, target, symmetries), problem.cohort.task
    generator = torch.Generator().manual_seed(problem.cohort.seed)
    optimiser = torch.optim.Adam(symmetries.parameters(), lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(updates, 1))
    before = network.divergence(task, problem.cohort.refit_inputs)
    if before < SAME:
        return start, {"before": before, "after": before}
    for inputs in _drawn(problem, batch, updates, generator):
        share = 0.5 + spread * (float(torch.rand((), generator=generator)) - 0.5)
        loss = network.loss(task, inputs, share)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    symmetries.eval()
    after = network.divergence(task, problem.cohort.refit_inputs)
    return (symmetries.alignment() if after < before else start), {"before": before, "after": after}


class _Averaged:
    """`(1 - t) B + t S(A)` as a network, beside its parents.

    Batch normalisations of all three take the statistics of the batch: those of an average are repaired afterwards.
    """

    def __init__(self, source: nn.Module, target: nn.Module, symmetries: LearnedSymmetries):
        self.symmetries = symmetries
        self.parents = tuple(_by_batch(module) for module in (source, target))
        self.network = _Runs(self.parents[1])
        self.own = dict(self.parents[1].state_dict())
        self.mixed = {n for n, own in self.own.items() if own.is_floating_point() and bool(own.isfinite().all())}

    def loss(self, task: Task, inputs: Batch, share: float) -> torch.Tensor:
        """Divergence from the ensemble on a batch, with gradients of the symmetries."""
        with torch.no_grad():
            outputs = [unwrap(inputs.run(module)).float() for module in self.parents]
        return task.divergence(self.outputs(inputs, share), task.combine(outputs, (share, 1 - share)))

    @torch.no_grad()
    def divergence(self, task: Task, inputs: Inputs) -> float:
        """Divergence at equal weights, on all inputs."""
        found = [(batch.size, float(self.loss(task, batch, 0.5))) for batch in inputs.batched(EVALUATED)]
        return sum(size * value for size, value in found) / sum(size for size, _ in found)

    def outputs(self, inputs: Batch, share: float) -> torch.Tensor:
        """Outputs on a batch, with gradients of the symmetries."""
        moved, state = self.symmetries(), {}
        for name, own in self.own.items():
            mixes = name in self.mixed  # masks hold -inf
            state[f"network.{name}"] = (1 - share) * own + share * moved[name] if mixes else own
        return torch.func.functional_call(self.network, state, (inputs,))


def _by_batch(module: nn.Module) -> nn.Module:
    """A copy in float32 whose batch normalisations take the statistics of each batch."""
    module = copy.deepcopy(module).float().requires_grad_(False)
    for part in module.modules():
        if isinstance(part, NORMS):
            part.track_running_stats = False
            part.running_mean = part.running_var = part.num_batches_tracked = None
    return module


class _Runs(nn.Module):
    """A network that takes a batch."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, inputs: Batch) -> torch.Tensor:
        """Its output tensor."""
        return unwrap(inputs.run(self.network))


def _drawn(problem: FusionProblem, batch: int, updates: int, generator: torch.Generator) -> Iterator[Batch]:
    """`updates` batches of the refit inputs, in random order, pass after pass."""
    done = 0
    while done < updates:
        for inputs in problem.cohort.refit_inputs.epoch(batch, generator):
            if done == updates:
                return
            done += 1
            yield inputs
