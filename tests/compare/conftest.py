"""Small trained networks, and one run on digits that several tests look at."""

import pytest
import torch
from torch import nn

from featalign.studies.compare.config import RunConfig
from featalign.studies.compare.run import run

SMALL = RunConfig(
    seeds=2, epochs=6, probe=120, augmented=400, curve=3,
    methods=("vanilla", "ot-acts", "feature-project", "feature-reexpress", "zip", "feature-zip"),
    model_options={"hidden": (24, 16)},
)  # fmt: skip


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    return run(SMALL, tmp_path_factory.mktemp("run") / "digits", progress=False)


def trained(seed, x, y, loss=nn.functional.cross_entropy, widths=(16, 12), outputs=4, steps=100):
    torch.manual_seed(seed)
    module = nn.Sequential(
        nn.Linear(20, widths[0]), nn.ReLU(), nn.Linear(widths[0], widths[1]), nn.ReLU(), nn.Linear(widths[1], outputs)
    )
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(module(x), y).backward()
        optimizer.step()
    return module


@pytest.fixture(scope="session")
def own():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 20, generator=generator)
    y = (x @ torch.randn(20, 4, generator=generator)).argmax(1)
    return [trained(s, x, y) for s in (0, 1)], x, y
