"""Controls: the same network with nothing learned, and the same layer with its units' samples torn apart."""

from __future__ import annotations

import copy

import torch
from torch import nn

from featalign.data.inputs import Inputs

STATISTICS = 1000  # inputs that batch normalisations estimate their statistics on


def shuffled_weights(model: nn.Module, inputs: Inputs, seed: int = 0) -> nn.Module:
    """A copy whose weight tensors hold the same numbers in random order: nothing learned, scales kept.

    Batch normalisations estimate their statistics again on `inputs`: those of the trained network belong to other
    activations.
    """
    control = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in control.parameters():
            order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
            parameter.copy_(parameter.flatten()[order].view_as(parameter))
    estimate_statistics(control, inputs)
    return control


def estimate_statistics(model: nn.Module, inputs: Inputs) -> None:
    """Set the running statistics of every batch normalisation to those of `inputs`, layer after layer."""
    norms = [part for part in model.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    norms = [part for part in norms if part.track_running_stats]
    if not norms:
        return
    model.eval()
    kept = [part.momentum for part in norms]
    for part in norms:
        part.reset_running_stats()
        part.momentum = None  # the mean over all batches
        part.train()
    with torch.no_grad():
        for batch in inputs.sample(STATISTICS).batched(256):
            if batch.size > 1:
                batch.run(model)
    for part, momentum in zip(norms, kept):
        part.momentum = momentum
        part.eval()


def shuffled_samples(activations: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """Activations `[samples, n]` with each unit's samples in an order of its own.

    What units do alone remains; what they do together, which is all that superposition can be seen by, is gone.
    """
    generator = torch.Generator().manual_seed(seed)
    columns = [column[torch.randperm(len(column), generator=generator)] for column in activations.T]
    return torch.stack(columns, 1)
