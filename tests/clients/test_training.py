"""One loop over a task: what is learnt, what is reported, what is refused."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from featalign import clients, data
from featalign.clients import DecoderConfig, MLPConfig, TrainConfig, build, evaluate, train
from featalign.data import Classification, Inputs
from featalign.data.text import Stream, encode, windows
from featalign.errors import BadOption, NotFinite, ProbeError, TaskError

FAST = TrainConfig(epochs=30, batch_size=32, lr=0.02, optimizer="adam")
X = torch.randn(256, 6, generator=torch.Generator().manual_seed(0))


def weights(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


@pytest.mark.parametrize(
    ("task", "outputs", "targets", "metric"),
    [
        (None, 3, X[:, :3].argmax(1), "accuracy"),
        (None, 1, (X[:, 0] > X[:, 1]).long(), "accuracy"),
        (None, 1, X[:, 0] - 2 * X[:, 1], "r2"),
        (None, 2, X[:, :2] * 3, "r2"),
        ("multi-label", 3, (X[:, :3] > X[:, 3:]).long(), "accuracy"),
        (Classification(class_ids=(5, -7, 9)), 3, torch.tensor([5, -7, 9])[X[:, :3].argmax(1)], "accuracy"),
        (Classification(("a", "b", "c")), 3, ["abc"[k] for k in X[:, :3].argmax(1)], "accuracy"),
        (None, 3, X[:, :3].argmax(1).double().numpy(), "accuracy"),
    ],
    ids=["classes", "one logit", "one number", "numbers", "multi-label", "class ids", "names", "numpy"],
)
def test_every_task_is_learnt_by_the_same_loop(task, outputs, targets, metric):
    module = build(MLPConfig(6, (32,), outputs, bias=True))
    before = evaluate(module, (X, targets), task)[metric]
    losses = train(module, X, targets, task, FAST, progress=False)
    after = evaluate(module, (X, targets), task)[metric]
    assert len(losses) == 30 and losses[-1] < losses[0] / 2 and after > 0.93 > before


def test_positions_are_learnt():
    x = torch.randn(32, 4, 20)
    labels = x[:, :3].argmax(1)
    module = build(clients.Conv1dConfig(width=8, kernels=(3,), dilations=(1,), blocks=1))
    train(module, x, labels, None, TrainConfig(epochs=25, batch_size=8, lr=0.02, optimizer="adam"), progress=False)
    assert evaluate(module, (x, labels))["accuracy"] > 0.9
    masked = torch.full_like(labels, -100)
    before = weights(module)
    assert train(module, x, masked, Classification(class_dim=1), TrainConfig(epochs=2), progress=False) == []
    assert torch.equal(weights(module), before)  # no target counts


def test_a_decoder_learns_from_a_stream_and_is_reproducible():
    text = "to be or not to be that is the question " * 20
    alphabet = sorted(set(text))
    tokens = encode(text, alphabet)
    config = DecoderConfig(len(alphabet), context=16, width=24, heads=2, depth=1, hidden=48)
    recipe = config.recipe(len(tokens), steps=100, batch_size=16, lr=1e-2)
    runs = [build(config, 0), build(config, 0)]
    held = windows(tokens, 16, 20, torch.Generator().manual_seed(9))
    before = evaluate(runs[0], held[:, :-1])["loss"]
    losses = [train(run, Stream(tokens, 16), None, "next-token", recipe, progress=False) for run in runs]
    assert losses[0] == losses[1] and len(losses[0]) == 1
    assert torch.equal(weights(runs[0]), weights(runs[1]))
    assert evaluate(runs[0], held[:, :-1])["loss"] < before - 1
    assert evaluate(runs[0], (held[:, :-1], held[:, 1:]), "next-token")["loss"] < before - 1


def test_one_cycle_is_torchs():
    x, y = X[:64], X[:64, :3].argmax(1)
    config = TrainConfig(batch_size=16, lr=0.01, optimizer="adam", schedule="one-cycle", steps=20, warmup=0.3)
    module, seen = build(MLPConfig(6, (5,), 3)), []
    train(module, x, y, None, config, progress=False, log=lambda found, step: seen.append({**found, "step": step}))
    other = build(MLPConfig(6, (5,), 3))
    optimizer = torch.optim.AdamW(other.parameters(), lr=0.01, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, 20, pct_start=0.3)
    generator = torch.Generator().manual_seed(0)
    order = [part for _ in range(5) for part in torch.randperm(64, generator=generator).split(16)]
    for chosen in order:
        optimizer.zero_grad()
        nn.functional.cross_entropy(other(x[chosen]), y[chosen]).backward()
        optimizer.step()
        schedule.step()
    assert torch.allclose(weights(module), weights(other), atol=1e-6)
    assert [found["step"] for found in seen] == [20] and seen[0]["loss"] > 0


def test_steps_count_across_epochs_and_zero_means_none():
    y = X[:, :3].argmax(1)
    seen = []
    train(
        build(MLPConfig(6, (), 3)),
        X,
        y,
        None,
        TrainConfig(steps=230, batch_size=64),
        progress=False,
        log=lambda found, step: seen.append({**found, "step": step}),
    )
    assert [found["step"] for found in seen] == [100, 200, 230]
    for config in (TrainConfig(epochs=0), TrainConfig(steps=0)):
        module = build(MLPConfig(6, (4,), 3))
        assert train(module, X, y, None, config, progress=False) == []
        assert torch.equal(weights(module), weights(build(MLPConfig(6, (4,), 3)))) and not module.training


def test_loaders_train_too():
    y = X[:, :3].argmax(1)
    loader = DataLoader(TensorDataset(X, y), 32, shuffle=True)
    runs = [build(MLPConfig(6, (16,), 3)) for _ in range(2)]
    for run in runs:
        losses = train(run, loader, None, None, TrainConfig(epochs=20, lr=0.3), progress=False)
    assert len(losses) == 20 and losses[-1] < losses[0]
    assert torch.equal(weights(runs[0]), weights(runs[1]))


def test_double_and_transformers_outputs():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 3).double()

        def forward(self, pixels, labels=None):
            return {"loss": torch.zeros(()), "logits": self.layer(pixels)}

    module = Named()
    losses = train(module, {"pixels": X, "labels": X[:, :3].argmax(1)}, None, None, FAST, progress=False)
    assert losses[-1] < losses[0] and module.layer.weight.dtype == torch.float64


@pytest.mark.parametrize(
    ("inputs", "config", "words"),
    [
        (
            X * 1e30,
            TrainConfig(),
            r"loss of 'client B' is (nan|inf) at step \d+ \(lr 0.01, .*scale the inputs",
        ),
        (X, TrainConfig(lr=1e25), r"loss of 'client B' is (nan|inf) at step \d"),
        (X.clone().index_fill(0, torch.tensor([3]), float("nan")), FAST, "is nan at step"),
    ],
)
def test_divergence_is_named_at_the_first_loss(inputs, config, words):
    with pytest.raises(NotFinite, match=words) as caught:
        train(build(MLPConfig(6, (8,), 3)), inputs, X[:, :3].argmax(1), None, config, progress=False, name="client B")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "bad",
    [
        *({"epochs": -1}, {"epochs": 1.5}, {"epochs": "3"}, {"batch_size": 0}, {"steps": -1}, {"lr": 0.0}),
        *({"lr": float("inf")}, {"lr": float("nan")}, {"lr": "x"}, {"momentum": -1}, {"warmup": 0.0}, {"warmup": 1.0}),
        *({"optimizer": "lion"}, {"schedule": "step"}),
    ],
    ids=str,
)
def test_settings_out_of_range(bad):
    with pytest.raises(BadOption, match=next(iter(bad))):
        TrainConfig(**bad)


def test_what_cannot_be_trained_on():
    module = build(MLPConfig(6, (8,), 3))
    with pytest.raises(BadOption, match="no training samples"):
        train(module, X[:0], torch.zeros(0).long(), progress=False)
    with pytest.raises(TaskError, match="no targets"):
        train(module, X, progress=False)
    with pytest.raises(TaskError, match="class_ids"):
        train(module, X, torch.full((256,), 3), progress=False)
    with pytest.raises(TaskError, match="string"):
        train(module, X, np.array(["a"] * 256), progress=False)
    with pytest.raises(ProbeError, match="256 inputs and 255 targets"):
        train(module, X, torch.zeros(255).long(), progress=False)


def test_a_single_left_over_sample_does_not_stop_batch_normalisation():
    module = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    y = X[:9, :3].argmax(1)
    assert len(train(module, X[:9], y, None, TrainConfig(epochs=2, batch_size=8), progress=False)) == 2
    assert train(module, X[:1], y[:1], None, TrainConfig(epochs=2), progress=False) == []


def test_buffers_may_hold_infinities():
    module = nn.Linear(6, 3)
    module.register_buffer("mask", torch.full((3,), -torch.inf))
    clients.check_finite(module, "A")
    module.weight.data[0, 0] = torch.inf
    with pytest.raises(NotFinite, match="'weight'"):
        clients.check_finite(module, "A")


def test_inputs_may_be_read_beforehand():
    y = X[:, :3].argmax(1)
    a, b = build(MLPConfig(6, (8,), 3)), build(MLPConfig(6, (8,), 3))
    train(a, X, y, None, FAST, progress=False)
    train(b, Inputs.of(X, y), None, "classification", FAST, progress=False)
    assert torch.equal(weights(a), weights(b))
    assert data.task_of("classification", a(X), Inputs.of(X, y).example(256)).name == "classification"
