"""What is decided without labels: heads, references, options, statistics, and gradient steps from the closed form."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from featalign import fuse
from featalign.align.pool import Gram
from featalign.clients import Cohort
from featalign.clients.families.resnet import ResNet20Config
from featalign.data import Inputs
from featalign.errors import BadOption
from featalign.fuse import FusionProblem, reduce, solve
from featalign.fuse.choose import agreement, distance, head_of, nearest_client
from featalign.fuse.methods.pools import LEANS
from featalign.fuse.readout import Sample, readout_target
from featalign.fuse.repair import survive
from featalign.spaces.capture import evaluating, stream

from .conftest import network, permuted, problem_of
from .modules import shaken


def outputs(module, x):
    with evaluating(module):
        return module(x)


def vetoing(probe):
    """Two clients, each sure of what it knows on its half of the inputs and sure of class 0 elsewhere."""
    clients = []
    for side in (1.0, -1.0):
        module = network(seed=int(side))
        with torch.no_grad():
            module[0].weight[0], module[2].weight[0] = 0.0, 0.0
            module[0].weight[0, 0], module[2].weight[0, 0], module[4].weight[0, 0] = side, 1.0, 40.0
        clients.append(module)
    return problem_of(clients, probe)


def test_the_readout_target_follows_what_the_clients_agree_on(probe):
    same = problem_of([network(), permuted(network())], probe)
    assert agreement(same) == 1 and head_of(same) == "mean-logits"
    apart = vetoing(probe)
    assert agreement(apart) < 0.9 and head_of(apart) == "evidence"
    assert head_of(apart, again=True) == "log-mixture" and head_of(same, again=True) == "mean-logits"
    named = solve(apart, "zip", refit=True, head="evidence").module
    assert torch.equal(outputs(solve(apart, "zip", refit=True).module, probe), outputs(named, probe))


def test_a_client_sure_of_one_answer_does_not_give_it_to_all(probe):
    clients = [network(seed=seed) for seed in range(4)]
    with torch.no_grad():
        for module in clients[:3]:
            module[4].weight.mul_(100.0)
        clients[3][4].weight.mul_(3000.0)
    problem = problem_of(clients, probe)
    assert problem.temper < 0.5 and problem_of(clients[:3], probe).temper == 1
    assert problem_of(clients[2:], probe).temper == 1  # two cannot tell which of them is too sure
    told, loud = [outputs(module, probe) for module in clients], outputs(clients[3], probe).argmax(1)
    alone = problem.cohort.task.head_target(told, problem.mixing, head="evidence")
    assert torch.equal(alone.argmax(1), loud)
    assert not torch.equal(readout_target(problem, told, "evidence").argmax(1), loud)
    assert distance(problem, clients[3], problem.cohort.probe) > 0  # nor do choices go by it alone


def test_a_head_fitted_by_cross_entropy_finds_what_least_squares_lose_in_the_background():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 6, generator=generator).double()
    rare = 6 * x[:, :1] - 14  # one position in a hundred
    wanted = torch.cat([-rare, rare], 1) / 2 + 0.3 * torch.randn(4000, 2, generator=generator).double()
    read = torch.cat([x.clamp(-1, 3), torch.ones(4000, 1, dtype=torch.float64)], 1)
    start = torch.linalg.lstsq(read, wanted).solution
    sample = Sample(4000)
    for part in range(0, 4000, 1000):
        rows = slice(part, part + 1000)
        sample.add(1000, read[rows], torch.zeros(1000, 2), wanted[rows])
    task = Cohort.of([network()], torch.randn(4, 12), task="classification").task
    fitted = sample.change(task.head_loss, start, 1e-4)
    before, after = ((task.head_loss(read @ weight, wanted)).mean() for weight in (start, fitted))
    wrong = [task.distance(read @ weight, wanted).mean() for weight in (start, fitted)]
    assert after < before and wrong[1] < wrong[0]


@pytest.mark.parametrize("name", ["dense-relu", "one-logit", "per-position", "tokens-out", "two-convs"])
def test_fitted_heads_and_gradient_steps_leave_a_network_fused_with_itself_alone(name):
    module, x = shaken(name), torch.randn(80, 12, generator=torch.Generator().manual_seed(1))
    problem = FusionProblem(Cohort.of([module, copy.deepcopy(module)], x, task="classification"))
    for method in ("ot-acts", "zip"):
        found = solve(problem, method, refit=True, head="cross-entropy", steps=3).module
        want = outputs(module, x)
        assert float((outputs(found, x) - want).abs().max()) <= 2e-5 * float(want.abs().max())


def test_gradient_steps_come_nearer_to_the_ensemble_and_are_counted(probe):
    problem = vetoing(probe)
    before, after = (solve(problem, "ot-acts", refit=True, steps=steps) for steps in (0, 40))
    told = [task_loss(problem, result.module, probe) for result in (before, after)]
    assert told[1] < told[0] and after.notes["steps"]["count"] == 40
    assert not any(parameter.grad is not None for parameter in after.module.parameters())
    with pytest.raises(BadOption, match="steps"):
        solve(problem, "ot-acts", steps=-1)


def task_loss(problem, module, x):
    task, told = problem.cohort.task, [outputs(client, x) for client in problem.clients]
    wanted = task.head_target(told, problem.mixing, head=head_of(problem))
    return float(task.head_loss(outputs(module, x).double(), wanted).mean())


def test_the_reference_is_the_client_nearest_to_all_of_them(probe):
    sure = network()
    with torch.no_grad():
        sure[-1].weight.mul_(20.0)
    clients = [network(seed=5), sure, permuted(sure)]
    problem = problem_of(clients, probe)
    assert nearest_client(problem.cohort) in (1, 2)
    found = fuse(clients[::-1], probe, "ot-acts", task="classification", reference="auto")
    assert found.reference in (0, 1) and found.clients[found.reference] in ("A", "B")


def test_options_left_open_are_those_nearest_to_the_ensemble_on_a_held_out_probe(probe):
    problem = vetoing(probe)
    found = solve(problem, "zip", refit=True, lean="auto")
    tried = found.notes["tried"]
    assert [row["lean"] for row in tried] == list(LEANS)
    assert found.options["lean"] == min(tried, key=lambda row: row["distance"])["lean"]
    assert distance(problem, problem.clients[0], Inputs.of(probe)) > 0
    with pytest.raises(BadOption, match="parted"):
        solve(problem_of(problem.clients, probe[:5]), "zip", lean="auto")
    with pytest.raises(BadOption, match="lean"):
        solve(problem, "zip", lean="wide")


def test_statistics_stay_where_the_probe_is_unlike_the_clients_data():
    generator = torch.Generator().manual_seed(0)
    data, odd = torch.randn(64, 3, 8, 8, generator=generator), 5 * torch.rand(16, 3, 8, 8, generator=generator) + 3
    clients = [settled(ResNet20Config(width=0.25), seed, data) for seed in range(2)]
    assert survive(clients, Inputs.of(data[:32])) and not survive(clients, Inputs.of(odd))
    problem = FusionProblem(Cohort.of(clients, odd, task="regression"))
    rule, repaired = (solve(problem, "ot-acts", repair=repair).module.state_dict() for repair in (False, True))
    assert all(torch.equal(rule[name], repaired[name]) for name in rule)
    like = FusionProblem(Cohort.of(clients, data[:32], task="regression"))
    rule, repaired = (solve(like, "ot-acts", repair=repair).module.state_dict() for repair in (False, True))
    assert not all(torch.equal(rule[name], repaired[name]) for name in rule)


def settled(config, seed, data):
    """A network whose normalisations hold the statistics of some data."""
    from featalign.clients import build

    module = build(config, seed)
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.reset_running_stats()
            part.momentum = None
    with torch.no_grad():
        module.train()(data)
    return module.eval()


def test_units_of_many_clients_are_chosen_on_fewer_inputs_and_all_the_same(probe, monkeypatch):
    clients = [network(), permuted(network()), permuted(network(), 4)]
    monkeypatch.setattr(reduce, "POOL", 8)
    seen = []

    def counting(module, inputs, sites):
        seen.append(len(inputs))
        return stream(module, inputs, sites)

    monkeypatch.setattr(reduce, "stream", counting)
    found = solve(problem_of(clients, probe), "zip").module
    assert max(seen) == 4 * 16 < len(probe)
    want = outputs(clients[2], probe)
    assert float((outputs(found, probe) - want).abs().max()) <= 1e-4 * float(want.abs().max())


def test_units_of_many_clients_are_the_same_by_rows_as_by_their_second_moments(probe, monkeypatch):
    clients, rows = [network(seed=seed) for seed in range(6)], probe[:20]  # fewer inputs than candidates
    found = solve(problem_of(clients, rows), "zip")
    looked = []

    def added(gram, units):
        looked.append(len(units) < units.shape[1])
        gram._whole = units.T @ units if gram._whole is None else gram._whole + units.T @ units

    monkeypatch.setattr(Gram, "add", added)
    whole = solve(problem_of(clients, rows), "zip")
    assert all(looked)
    assert found.notes["units_from_client"] == whole.notes["units_from_client"]
    want = outputs(whole.module, probe)
    assert float((outputs(found.module, probe) - want).abs().max()) <= 1e-4 * float(want.abs().max())
