import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch

from featalign import clients, data
from featalign.clients import MLPConfig, TrainConfig, evaluate
from featalign.errors import BadOption, NotFinite, UnknownName
from featalign.storage.cache import CacheWarning

QUICK = TrainConfig(epochs=3, batch_size=32, lr=0.1, momentum=0.9)


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


@pytest.fixture(scope="module")
def split(digits):
    return data.partition(digits.train_labels, "special-label", 2, seed=0, special=4)


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("FEATALIGN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "clients"


def same(a, b):
    mine, other = a.state_dict(), b.state_dict()
    return mine.keys() == other.keys() and all(torch.equal(mine[key], other[key]) for key in mine)


def test_import_is_cheap():
    code = "import sys, featalign.clients; assert not {'transformer_lens', 'sae_lens', 'ot'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("hidden", [(), (7,), (7, 5, 3)])
def test_mlp_computes_what_it_says(hidden, bias):
    model = clients.build(MLPConfig(12, hidden, 4, bias=bias), seed=1)
    x = torch.randn(6, 3, 4)
    out, cache = model.run_with_cache(x)
    h = x.flatten(1)
    for k in range(1, len(hidden) + 1):
        h = getattr(model, f"fc{k}")(h)
        assert torch.equal(cache[f"hook_pre{k}"], h)
        h = h.relu()
        assert torch.equal(cache[f"hook_post{k}"], h) and h.shape[1] == hidden[k - 1]
    assert torch.equal(out, getattr(model, f"fc{len(hidden) + 1}")(h)) and out.shape == (6, 4)
    assert any(name.endswith("bias") for name in model.state_dict()) == bias


def test_hooks_intervene():
    model = clients.build(MLPConfig(6, (5,), 3))
    zeroed = model.run_with_hooks(torch.randn(2, 6), fwd_hooks=[("hook_post1", lambda acts, hook: acts * 0)])
    assert torch.equal(zeroed, torch.zeros(2, 3))


def test_traceable_when_hook_points_are_leaves():
    from transformer_lens.hook_points import HookPoint

    class Tracer(torch.fx.Tracer):
        def is_leaf_module(self, module, name):
            return isinstance(module, HookPoint) or super().is_leaf_module(module, name)

    model = clients.build(MLPConfig(6, (5, 4), 3))
    graph = Tracer().trace(model)
    called = [node.target for node in graph.nodes if node.op == "call_module"]
    assert called == [f"{part}{k}" for k in (1, 2) for part in ("fc", "hook_pre", "act", "hook_post")] + ["fc3"]
    x = torch.randn(2, 6)
    assert torch.equal(torch.fx.GraphModule(model, graph)(x), model(x))


def test_build_is_seeded_and_leaves_the_global_state():
    config = MLPConfig(6, (5,), 3, bias=True, activation="tanh")
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    a, b, c = clients.build(config, 1), clients.build(config, 1), clients.build(config, 2)
    assert torch.equal(torch.rand(3), expected)
    assert same(a, b) and not same(a, c)


def test_configs_round_trip_and_refuse():
    config = MLPConfig(6, [5, 4], 3, bias=True, activation="gelu")
    assert clients.from_dict(config.to_dict()) == config and hash(config)
    with pytest.raises(UnknownName, match="mlp"):
        clients.from_dict({"model": "mpl"})
    with pytest.raises(BadOption, match="no option 'width'"):
        clients.from_dict({"model": "mlp", "width": 3})
    for bad in ({"hidden": (5, 0)}, {"activation": "relu6"}, {"inputs": 0}):
        with pytest.raises(BadOption):
            MLPConfig(**bad)


def test_defaults_follow_the_data_set(digits):
    assert MLPConfig.for_dataset(digits).hidden == (64, 32)
    assert MLPConfig.for_dataset(digits, hidden=(9,), bias=True) == MLPConfig(64, (9,), 10, bias=True)
    assert MLPConfig.recipe(1442, epochs=2).epochs == 2 and MLPConfig.recipe(1442).lr == 0.05
    assert MLPConfig.recipe(60_000) == TrainConfig()


@pytest.mark.parametrize("options", [{}, {"schedule": "cosine"}, {"optimizer": "adam", "lr": 0.01}])
def test_training_is_seeded_and_learns(digits, options):
    config = TrainConfig(**{"epochs": 8, "batch_size": 32, "lr": 0.1, "momentum": 0.9, **options})
    models = [clients.build(MLPConfig(64, (32,), 10)) for _ in range(3)]
    runs = [
        clients.train(model, digits.train_inputs, digits.train_labels, None, config, seed, progress=False)
        for model, seed in zip(models, (0, 0, 1))
    ]
    assert runs[0] == runs[1] and same(models[0], models[1]) and not same(models[0], models[2])
    assert len(runs[0]) == 8 and runs[0][-1] < runs[0][0] / 4
    assert evaluate(models[0], (digits.test_inputs, digits.test_labels))["accuracy"] > 0.85
    assert not models[0].training


def test_sgd_step_is_the_formula():
    model = clients.build(MLPConfig(4, (), 3))
    x, y = torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1])
    before = model.fc1.weight.detach().clone()
    gradient = (torch.softmax(x @ before.T, 1) - torch.nn.functional.one_hot(y, 3)).T @ x / 5
    clients.train(model, x, y, None, TrainConfig(epochs=1, batch_size=5, lr=0.3, momentum=0.9), progress=False)
    assert torch.allclose(model.fc1.weight, before - 0.3 * gradient, atol=1e-6)


@pytest.mark.parametrize(("convolution", "expected"), [(False, 1), (True, 2)])
def test_small_dense_networks_train_on_one_thread(monkeypatch, convolution, expected):
    threads = {"now": 2}
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads["now"])
    monkeypatch.setattr(torch, "set_num_threads", lambda n: threads.update(now=n))
    head = [torch.nn.Flatten(), torch.nn.Linear(16, 3)]
    seen = []
    model = torch.nn.Sequential(*([torch.nn.Conv2d(1, 1, 1)] if convolution else []), *head)
    model.register_forward_hook(lambda *_: seen.append(threads["now"]))
    clients.train(model, torch.rand(6, 1, 4, 4), torch.arange(6) % 3, None, TrainConfig(epochs=1), progress=False)
    assert set(seen) == {expected} and threads["now"] == 2


def test_clients_see_their_part_only(digits, split):
    a, b = clients.train_clients(digits, split, seed=0, progress=False)
    assert (a.name, b.name) == ("A", "B")
    assert np.array_equal(a.indices, split.indices[0]) and np.array_equal(b.counts, split.counts[1])
    predicted = clients.outputs(b.model, digits.test_inputs).argmax(1)
    assert (predicted == 4).sum() == 0  # B never saw the special label
    fours = digits.test_labels == 4
    assert evaluate(a.model, (digits.test_inputs[fours], digits.test_labels[fours]))["accuracy"] > 0.9
    assert a.to_dict()["samples"] == len(a.indices)


def test_second_run_comes_from_the_cache(digits, split, monkeypatch, cache):
    first = clients.train_clients(digits, split, None, QUICK, progress=False)
    assert sorted(p.name for p in cache.iterdir()) == sorted(c.key for c in first)

    def never(*_args, **_options):
        raise AssertionError("trained again")

    monkeypatch.setattr("featalign.clients.client.train", never)
    second = clients.train_clients(digits, split, None, QUICK, progress=False)
    assert all(same(x.model, y.model) and x.losses == y.losses for x, y in zip(first, second))
    with pytest.raises(AssertionError, match="trained again"):
        clients.train_clients(digits, split, None, QUICK, progress=False, cache=False)


def test_key_depends_on_everything_that_sets_the_weights(digits, split):
    quick = TrainConfig(epochs=0)
    fields = {key: getattr(digits, key) for key in digits.__dataclass_fields__}
    changed = data.Dataset(**{**fields, "train_labels": digits.train_labels.roll(1)})
    other_split = data.partition(digits.train_labels, "special-label", 2, seed=1, special=4)
    runs = [
        (digits, split, None, quick, 0),
        (changed, split, None, quick, 0),
        (digits, other_split, None, quick, 0),
        (digits, split, MLPConfig(64, (16,), 10), quick, 0),
        (digits, split, None, TrainConfig(epochs=0, lr=0.2), 0),
        (digits, split, None, quick, 1),
    ]
    keys = [c.key for run in runs for c in clients.train_clients(*run, progress=False)]
    assert len(set(keys)) == len(keys) == 12


def test_initialisation_is_independent_unless_shared(digits, split):
    untrained = TrainConfig(epochs=0)
    a, b = clients.train_clients(digits, split, None, untrained, progress=False)
    assert not same(a.model, b.model)
    a, b = clients.train_clients(digits, split, None, untrained, progress=False, shared_init=True)
    assert same(a.model, b.model)


def test_interrupted_run_resumes_and_leaves_nothing_half_written(digits, split, monkeypatch, cache):
    from featalign.clients import client as module

    real, trained = module.train, []

    def interrupted(model, *rest):
        if len(trained) == 1:
            raise KeyboardInterrupt
        trained.append(rest[-3])
        return real(model, *rest)

    monkeypatch.setattr(module, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        clients.train_clients(digits, split, None, QUICK, progress=False)
    assert len(list(cache.iterdir())) == 1
    monkeypatch.setattr(module, "train", lambda model, *rest: trained.append(rest[-3]) or real(model, *rest))
    clients.train_clients(digits, split, None, QUICK, progress=False)
    assert trained == ["client A, seed 0", "client B, seed 0"]


@pytest.mark.parametrize("file", ["weights.safetensors", "client.json"])
@pytest.mark.parametrize("damage", ["truncated", "missing", "flipped"])
def test_a_damaged_cached_client_is_trained_again(digits, split, cache, file, damage):
    first = clients.train_clients(digits, split, None, QUICK, progress=False)
    path = clients.client_folder(first[0].key) / file
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.unlink() if damage == "missing" else path.write_bytes(content if damage == "flipped" else content[:-20])
    with pytest.warns(CacheWarning, match="built again") as caught:
        again = clients.train_clients(digits, split, None, QUICK, progress=False)
    assert all(same(x.model, y.model) and x.losses == y.losses for x, y in zip(first, again))
    assert len(caught) == 1 and first[0].key in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error", CacheWarning)  # the entry was written anew
        clients.train_clients(digits, split, None, QUICK, progress=False)


def test_a_cache_that_cannot_be_written_is_done_without(digits, split, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FEATALIGN_CACHE", str(tmp_path / "file"))
    with pytest.warns(CacheWarning, match="going on without"):
        found = clients.train_clients(digits, split, None, QUICK, progress=False)
    assert len(found) == 2 and all(client.losses for client in found)


def test_diverged_client_is_refused_and_not_cached(digits, split, cache):
    wild = TrainConfig(epochs=5, lr=1e20)
    with pytest.raises(NotFinite, match="loss of 'client A, seed 0' is"):
        clients.train_clients(digits, split, None, wild, progress=False)
    assert not cache.exists() or not list(cache.iterdir())


def test_tiny_clients_train_and_empty_ones_are_marked(digits, caplog):
    labels = digits.train_labels
    for split in (data.partition(labels, "dirichlet", 8, alpha=0.1), data.partition(labels, "iid", 60)):
        found = clients.train_clients(digits, split, None, TrainConfig(epochs=1), progress=False, cache=False)
        assert len(found) == len(split) and not any(client.note for client in found)
    assert found[59].name == "BH"
    sparse = data.partition(labels, "dirichlet", 40, alpha=1e-6)
    found = clients.train_clients(digits, sparse, None, TrainConfig(epochs=1), progress=False)
    assert {client.name for client in found if client.note} == set(sparse.too_small()) != set()
    assert all(client.losses for client in found if not client.note)
    marked = next(client for client in found if client.note)
    assert "no samples" in marked.note and marked.to_dict()["note"] and f"client {marked.name}" in caplog.text
    assert not clients.client_folder(marked.key).exists()


def test_clients_of_another_task(digits):
    targets = digits.train_inputs[:, :2].sum(1)
    tests = digits.test_inputs[:, :2].sum(1)
    dataset = data.Dataset("sums", digits.train_inputs, targets, digits.test_inputs, tests, ())
    split = data.partition(targets, "iid", 2)
    a, b = clients.train_clients(dataset, split, None, QUICK, progress=False, task="regression")
    assert a.model(digits.test_inputs[:3]).shape == (3, 1) and a.task == b.task == data.Regression()
    assert evaluate(a.model, (digits.test_inputs, dataset.test_labels), a.task)["r2"] > 0.1
    again = data.Dataset(**{**vars(dataset), "task": data.Regression()})
    assert [c.key for c in clients.train_clients(again, split, None, QUICK, progress=False)] == [a.key, b.key]


def test_other_bad_input(digits):
    few = data.partition(digits.train_labels.repeat(2), "iid", 2)
    with pytest.raises(BadOption, match="does not have"):
        clients.train_clients(digits, few, progress=False)
