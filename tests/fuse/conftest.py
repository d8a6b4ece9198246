from itertools import pairwise

import pytest
import torch
from torch import nn

from featalign.clients.cohort import Cohort
from featalign.data import Classification
from featalign.fuse import FusionProblem


def network(widths=(12, 16, 8, 5), bias=False, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = []
        for low, high in pairwise(widths):
            layers += [nn.Linear(low, high, bias=bias), nn.ReLU()]
        return nn.Sequential(*layers[:-1]).eval()


def permuted(module, seed=3):
    """The same function with hidden units in another order."""
    import copy

    twin = copy.deepcopy(module)
    linear = [part for part in twin if isinstance(part, nn.Linear)]
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for below, above in pairwise(linear):
            order = torch.randperm(below.out_features, generator=generator)
            below.weight.copy_(below.weight[order])
            if below.bias is not None:
                below.bias.copy_(below.bias[order])
            above.weight.copy_(above.weight[:, order])
    return twin


def duplicated(module, copies):
    """The same function with every hidden unit `copies` times, outgoing weights divided."""
    linear = [part for part in module if isinstance(part, nn.Linear)]
    layers = []
    for place, part in enumerate(linear):
        weight = part.weight.detach()
        bias = None if part.bias is None else part.bias.detach()
        if place > 0:
            weight = weight.repeat_interleave(copies, dim=1) / copies
        if place < len(linear) - 1:
            weight = weight.repeat_interleave(copies, dim=0)
            bias = None if bias is None else bias.repeat_interleave(copies)
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
        with torch.no_grad():
            layer.weight.copy_(weight)
            if bias is not None:
                layer.bias.copy_(bias)
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1]).eval()


def problem_of(clients, probe, mixing=(), reference=-1, evaluate=None, task=None, dictionaries=None, **options):
    cohort = Cohort.of(clients, probe, evaluate, task or Classification(), **options)
    return FusionProblem(cohort, mixing, reference, dictionaries or {})


@pytest.fixture(scope="session")
def probe():
    return torch.randn(600, 12, generator=torch.Generator().manual_seed(1))
