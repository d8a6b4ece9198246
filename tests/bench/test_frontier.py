"""The frontier of accuracy against monosemanticity: what its points are, and what a fused width does."""

import json
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

from featalign.bench import frontier as bench
from featalign.clients import evaluate
from featalign.dictionaries import train
from featalign.errors import BadOption
from featalign.fuse import solve
from featalign.plots.fusion import frontier as draw
from tests.fuse.conftest import network, problem_of


def inputs(samples=400, n=12):
    return torch.randn(samples, n, generator=torch.Generator().manual_seed(1))


def pair(widths=(12, 16, 5), bias=True):
    x = inputs()
    clients = [network(widths, bias=bias, seed=seed) for seed in (0, 1)]
    return problem_of(clients, x, evaluate=(x, x[:, :5].argmax(1)))


@pytest.fixture(scope="module")
def transcoders():
    """Hardly trained ones of both clients of `pair`, 40 latents each."""
    problem = pair()
    (space,) = problem.graph.hidden
    held = [client(0) for client in ()]
    _, held, _ = next(iter(problem.activations))
    rows = [own[space.before] for own in held]
    return {space.name: tuple(train(each, 40, "transcoder", k=6, steps=40, seed=0) for each in rows)}
