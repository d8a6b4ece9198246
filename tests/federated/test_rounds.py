import copy

import numpy as np
import pandas as pd
import pytest
import torch

from featalign import data
from featalign.clients import Cohort, MLPConfig, TrainConfig, train_clients
from featalign.errors import BadOption, ProbeError
from featalign.federated import ClientWarning, Federation, Local, run
from featalign.federated.fusing import Fusing, average, fuse_reports
from featalign.federated.messages import Report
from featalign.fuse import FusionProblem, solve
from tests.federated.conftest import blobs, net, small


def states_equal(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def test_fedavg_is_the_weighted_mean_of_what_clients_trained(federation):
    from featalign.federated import InProcess, Server, Settings

    server = Server(federation, Settings())
    orders = server.orders()
    reports = list(InProcess(federation, Local())(orders))
    server.close(orders, reports)
    sizes = torch.tensor(federation.sizes).double()
    for name in server.weights:
        stacked = torch.stack([r.weights[name].double() for r in reports])
        expected = torch.einsum("k,k...->...", sizes / sizes.sum(), stacked)
        assert torch.allclose(server.weights[name].double(), expected, atol=1e-6)


@pytest.mark.parametrize("bias", [True, False])
def test_the_fast_path_gives_the_numbers_of_the_rule(bias):
    federation = small(model=net(bias=bias))
    modules = [net(bias=bias, seed=k) for k in range(4)]
    mixing = np.array([0.1, 0.2, 0.3, 0.4])
    reports = [Report(1, name, module.state_dict()) for name, module in zip(federation.names, modules)]
    server = federation.make(0).state_dict()
    fast = fuse_reports(federation, Fusing(), reports, mixing, server, shared=True)
    assert states_equal(fast, average([r.weights for r in reports], mixing, server))
    cohort = Cohort.of([*modules, federation.make(0)], federation.probe, task=federation.task)
    rule = solve(FusionProblem(cohort, (*mixing, 0.0), -1), "vanilla", repair=False).module.state_dict()
    assert states_equal(fast, rule)


@pytest.mark.parametrize("method", ["vanilla", ("ot-acts", {"refit": True}), "zip"])
def test_one_round_of_one_shot_clients_equals_fuse(method, tmp_path, monkeypatch):
    monkeypatch.setenv("FEATALIGN_CACHE", str(tmp_path))
    digits = data.load("digits")
    split = data.partition(digits.train_labels, "special-label", clients=2, special=4)
    config, recipe = MLPConfig(64, (16, 8)), TrainConfig(epochs=2, batch_size=32, lr=0.05, momentum=0.9)
    federation = Federation.of(digits, split, config, probe=200, recipe=recipe)
    result = run(federation, 1, fuse=method, start="independent", progress=False)
    clients = train_clients(digits, split, config, recipe, progress=False)
    cohort = Cohort.of([c.model for c in clients], federation.probe, task=digits.task, names=[c.name for c in clients])
    mixing = tuple(np.array(federation.sizes) / sum(federation.sizes))
    name, options = (method, {}) if isinstance(method, str) else method
    fused = solve(FusionProblem(cohort, mixing, int(np.argmax(federation.sizes))), name, **options).module
    assert states_equal(result.module.state_dict(), fused.state_dict())


def test_rounds_learn_and_count_what_travels(federation):
    result = run(federation, 6, progress=False)
    frames = result.frames
    assert frames["rounds"]["value"].iloc[-1] > 0.9 > frames["rounds"]["value"].iloc[0]
    size = sum(t.nbytes for t in result.module.state_dict().values())
    assert (frames["rounds"]["bytes_down"] == 4 * size).all()
    traffic = frames["traffic"]
    assert set(traffic["kind"]) == {"weights", "statistics"}
    assert (frames["rounds"]["worst"] <= frames["rounds"]["mean"]).all()
    assert traffic["bytes"].sum() == frames["rounds"][["bytes_up", "bytes_down"]].to_numpy().sum()
    assert frames["faults"].empty
    assert np.allclose(frames["clients"].groupby("round")["weight"].sum(), 1)


@pytest.mark.parametrize(
    "options",
    [
        {"fuse": ("ot-acts", {"refit": True})},
        {"fuse": ("ot-wts", {"refit": "moments"})},
        {"local": Local("scaffold")},
        {"momentum": 0.5, "weigh": "horvitz-thompson", "select": ("drop-outs", {"rate": 0.5})},
        {"weigh": ("fedavot", {"known": False}), "select": ("k-of-n", {"k": 2})},
    ],
)
def test_equal_seeds_give_equal_figures_and_other_seeds_others(federation, options):
    first, again = (run(federation, 2, progress=False, **options) for _ in range(2))
    for name, frame in first.figures_only().items():
        pd.testing.assert_frame_equal(frame, again.figures_only()[name])
    assert states_equal(first.module.state_dict(), again.module.state_dict())
    other = run(federation, 2, progress=False, seed=1, **options)
    assert not states_equal(first.module.state_dict(), other.module.state_dict())


def test_fedprox_stays_nearer_and_mu_zero_is_fedavg(federation):
    plain = run(federation, 2, progress=False)
    none = run(federation, 2, local=Local("fedprox", {"mu": 0.0}), progress=False)
    strong = run(federation, 2, local=Local("fedprox", {"mu": 5.0}), progress=False)
    assert states_equal(plain.module.state_dict(), none.module.state_dict())
    assert strong.rows["rounds"][0].drift < 0.8 * plain.rows["rounds"][0].drift


def test_scaffold_variates_average_to_the_servers(federation):
    from featalign.federated import InProcess, Server, Settings

    local = Local("scaffold")
    server, engine = Server(federation, Settings(local=local)), InProcess(federation, local)
    for _ in range(3):
        orders = server.orders()
        server.close(orders, list(engine(orders)))
    for name, value in server.control.items():
        mean = torch.stack([engine.controls[client][name] for client in federation.names]).mean(0)
        assert torch.allclose(value, mean, atol=1e-5)
        assert value.abs().max() > 0
    with pytest.raises(BadOption, match="momentum=0"):
        run(federation, 1, local=Local("scaffold", train=TrainConfig(momentum=0.9)), progress=False)


def test_scaffold_beats_fedavg_where_optima_differ():
    """A convex problem with long local training: FedAvg's fixed point is off, SCAFFOLD's is the optimum."""
    generator = torch.Generator().manual_seed(0)
    owned, weight = [], torch.zeros(1, 3)
    for k in range(3):
        x = torch.randn(30, 3, generator=generator) * torch.tensor([1.0, 0.2 + k, 2.0 - 0.6 * k])
        owned.append((x, x @ torch.randn(3, 1, generator=generator)))
    every, targets = torch.cat([x for x, _ in owned]), torch.cat([y for _, y in owned])
    optimum = torch.linalg.lstsq(every, targets).solution.T
    module = torch.nn.Linear(3, 1, bias=False)
    with torch.no_grad():
        module.weight.copy_(weight)
    recipe = TrainConfig(epochs=10, batch_size=30, lr=0.05, momentum=0.0)
    federation = Federation.gather(owned, module, task="regression", recipe=recipe)
    off = {
        name: float((run(federation, 60, local=Local(name), progress=False).module.weight.detach() - optimum).norm())
        for name in ("plain", "scaffold")
    }
    assert off["scaffold"] < 0.05 * off["plain"]


def test_momentum_and_server_lr_follow_their_formula(federation):
    plain = run(federation, 1, progress=False).module.state_dict()
    start = federation.make(0).state_dict()
    half = run(federation, 1, server_lr=0.5, progress=False).module.state_dict()
    for name in plain:
        assert torch.allclose(half[name], (start[name] + plain[name]) / 2, atol=1e-6)
    assert states_equal(plain, run(federation, 1, momentum=0.0, server_lr=1.0, progress=False).module.state_dict())


def test_moments_only_needs_no_probe_and_sends_no_inputs():
    federation = small(probe=None)
    result = run(federation, 4, fuse=("ot-wts", {"refit": "moments"}), progress=False)
    kinds = result.frames["traffic"].groupby("direction")["kind"].unique()
    assert set(kinds["up"]) == {"weights", "moments", "statistics"} and set(kinds["down"]) == {"weights"}
    assert result.rows["rounds"][-1].value > 0.9
    with pytest.raises(BadOption, match="no probe"):
        run(federation, 1, fuse="ot-acts", progress=False)


def test_a_shared_network_stays_a_fixed_point_of_every_aggregation():
    """Clients that do not train send back what they got, and every method returns it."""
    still = TrainConfig(epochs=0)
    federation = small(recipe=still)
    start = federation.make(0)
    for fuse in ("vanilla", ("ot-acts", {"refit": True}), ("weight-matching", {"refit": "moments"}), "zip"):
        module = run(federation, 2, fuse=fuse, progress=False).module
        x = federation.probe.tensor
        assert torch.allclose(module(x), start(x), atol=1e-4), fuse


def test_clients_without_samples_are_left_out_with_a_note():
    digits = data.load("digits")
    split = data.partition(digits.train_labels[:30], "iid", clients=3)
    empty = copy.copy(split)
    object.__setattr__(empty, "indices", (*split.indices[:2], split.indices[2][:0]))
    federation = Federation.of(digits, empty, MLPConfig(64, (8,)), probe=50)
    assert federation.names == ("A", "B") and "C" in federation.notes[0]


def test_a_method_that_the_networks_do_not_allow_is_an_error_not_a_fault(federation):
    with pytest.raises(BadOption, match="rotation"):
        run(federation, 1, fuse="procrustes", progress=False)
    with pytest.raises(BadOption, match="no option"):
        run(federation, 1, fuse=("ot-acts", {"costs": "distance"}), progress=False)
    with pytest.raises(BadOption, match="module can only be copied"):
        run(federation, 1, start="independent", progress=False)


def test_data_that_the_network_cannot_read_are_named_with_their_client():
    with pytest.raises(ProbeError, match=r"client left rejects the data float32 \[2, 5\].*pass inputs of the shape"):
        Federation.gather([(x[:, :5], y) for x, y in blobs(2)], net(), names=["left", "right"])


def test_feature_methods_train_dictionaries_at_the_clients():
    federation = Federation.gather(blobs(2, 120), net(), probe=blobs(1, 200)[0][0], recipe=TrainConfig(epochs=2))
    result = run(federation, 1, fuse="feature-project", progress=False)
    up = result.frames["traffic"].query("direction == 'up' and kind == 'dictionaries'")
    assert len(up) == 2 and (up["bytes"] > 0).all()


def test_one_failing_client_warns_and_all_failing_raise(federation):
    broken = blobs(4)
    broken[1] = (broken[1][0] * float("inf"), broken[1][1])
    partly = Federation.gather(broken, net(), evaluate=blobs(1)[0], recipe=federation.recipe)
    with pytest.warns(ClientWarning, match="client B, round 1: died"):
        result = run(partly, 1, progress=False, watch=0)
    assert result.rows["rounds"][0].reported == 3
    with pytest.raises(ValueError, match="client A"):
        run(small(recipe=TrainConfig(lr=1e30)), 1, progress=False)


def test_a_callback_receives_every_round_as_it_is_complete(federation):
    seen = []
    result = run(federation, 2, progress=False, log=lambda metrics, step: seen.append((step, metrics["value"])))
    assert seen == [(row.round, row.value) for row in result.to_frame().itertuples()]
