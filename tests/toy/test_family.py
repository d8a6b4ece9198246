"""Toy models as one more model family: modules, tracing, cohorts."""

from __future__ import annotations

import pytest
import torch

from featalign import clients, spaces
from featalign.errors import BadOption, SpaceMismatch
from featalign.toy import Reconstruction, ToyConfig, ToyModels, initial


@pytest.mark.parametrize(
    ("options", "symmetry"),
    [
        ({}, "orthogonal"),  # a tied decoder turns with the encoder: only rotations leave the product alone
        ({"tied": False}, "linear"),
        ({"hidden": "relu"}, "permutation"),  # a scale would enter twice
        ({"hidden": "relu", "tied": False}, "scaled-permutation"),
        ({"output": "none"}, "orthogonal"),
    ],
)
def test_tracing_finds_one_hidden_space_with_its_symmetry(options: dict, symmetry: str) -> None:
    module, x = initial(ToyConfig(7, 3, **options), [0]).modules()[0], torch.rand(4, 7)
    graph = spaces.trace(module, x)
    assert [(space.size, space.symmetry.value) for space in graph.hidden] == [(3, symmetry)]
    spaces.check(graph, module, x)


@pytest.mark.parametrize("options", [{}, {"tied": False}, {"hidden": "relu"}, {"bias": False}])
def test_modules_compute_what_the_batch_does_and_come_back(options: dict) -> None:
    models, x = initial(ToyConfig(7, 3, **options), [0, 1, 2]), torch.rand(11, 7)
    modules = models.modules()
    assert torch.allclose(torch.stack([module(x) for module in modules]), models(x), atol=1e-6)
    again = ToyModels.of(modules)
    assert again.config == models.config
    assert all(torch.equal(getattr(again, key), getattr(models, key)) for key in ("encoder", "decoder", "bias"))
    with pytest.raises(SpaceMismatch, match="no toy model"):
        ToyModels.of([torch.nn.Linear(2, 2)])


def test_the_family_is_registered_and_trains_on_its_task() -> None:
    config = clients.models["toy"].shaped((9,), 9, m=4)
    assert clients.from_dict(config.to_dict()) == config
    module, x = clients.build(config, seed=3), torch.rand(256, 9) * (torch.rand(256, 9) < 0.2)
    cohort = clients.Cohort.of([module, clients.build(config, seed=4)], probe=x, evaluate=(x, x), task="reconstruction")
    assert isinstance(cohort.task, Reconstruction) and cohort.task.metric.name == "loss"
    before = clients.evaluate(module, x, Reconstruction())["loss"]
    clients.train(
        module, x, None, Reconstruction(), clients.TrainConfig(epochs=5, batch_size=32, lr=0.1), progress=False
    )
    assert clients.evaluate(module, x, Reconstruction())["loss"] < before
    with pytest.raises(BadOption, match="returns its inputs"):
        clients.models["toy"].shaped((9,), 3)
