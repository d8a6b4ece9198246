"""Refit from Gram matrices: the same as from the inputs themselves, and exact where nothing has to be refitted."""

import pytest
import torch
from torch import nn

from featalign.clients import Cohort, DecoderConfig, build
from featalign.data import Classification
from featalign.data.inputs import Inputs
from featalign.errors import BadOption, SpaceMismatch
from featalign.federated import Fusing, client_moments, moment_refit
from featalign.fuse import FusionProblem, available, solve
from tests.fuse.conftest import network, permuted


def convolutional(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3), nn.ReLU(),
            nn.Flatten(), nn.Linear(24, 8), nn.ReLU(), nn.Linear(8, 5),
        ).eval()  # fmt: skip


def fused(modules, inputs, method, mixing=(), refit=True, reference=-1, **options):
    """A network fused by a method and refitted from each client's own inputs, with its problem and fits."""
    cohort = Cohort.of(modules, inputs[0], task=Classification())
    problem = FusionProblem(cohort, mixing, reference)
    result = solve(problem, method, repair=False)
    moments = [client_moments(m, g, Inputs.of(x)) for m, g, x in zip(cohort.modules, cohort.graphs, inputs)]
    fits = moment_refit(problem, result.module, result.alignments, moments, **options) if refit else []
    return result.module, problem, result.alignments, moments, fits


def samples(count=200, shape=(12,), seed=0):
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bias", [True, False])
def test_moments_are_those_of_what_each_layer_reads(bias):
    module, x = network(bias=bias), samples()
    graph = Cohort.of([module], x, task=Classification()).graphs[0]
    found = client_moments(module, graph, Inputs.of(x))
    read = {"0": x, "2": module[:2](x), "4": module[:4](x)}
    for name, rows in read.items():
        rows = torch.cat([rows, torch.ones(len(rows), 1)], 1) if bias else rows
        assert torch.allclose(found[name], rows.T @ rows / len(rows), atol=1e-4)


@pytest.mark.parametrize("bias", [True, False])
def test_each_layer_is_the_regression_on_the_clients_own_inputs(bias):
    """Against least squares on the stacked rows, both clients aligned by permutations."""
    modules = [network(bias=bias, seed=seed) for seed in range(2)]
    own, mixing, ridge = [samples(seed=1), samples(seed=2) + 0.5], (0.3, 0.7), 1e-3
    module, problem, alignments, _, fits = fused(modules, own, "ot-acts", mixing, ridge=ridge)
    before = fused(modules, own, "ot-acts", mixing, refit=False)[0]
    maps = [alignment.maps for alignment in alignments]
    layer, (reads, writes) = "2", [space.name for space in problem.graph.hidden][:2]
    x, t = [], []
    for k, (client, inputs) in enumerate(zip(modules, own)):
        rows = client[:2](inputs).double() @ maps[k][reads].out.T
        rows = torch.cat([rows, torch.ones(len(rows), 1)], 1) if bias else rows
        scale = (mixing[k] / len(rows)) ** 0.5
        x.append(scale * rows)
        t.append(scale * client[:3](inputs).double() @ maps[k][writes].out.T)
    x, t = torch.cat(x), torch.cat(t)
    w0 = before.get_submodule(layer)
    w0 = torch.cat([w0.weight, w0.bias[:, None]], 1).double() if bias else w0.weight.double()
    gram = x.T @ x
    damped = gram + ridge * gram.diagonal().mean() * torch.eye(len(gram))
    expected = w0 + torch.linalg.solve(damped, x.T @ (t - x @ w0.T)).T
    part = module.get_submodule(layer)
    found = torch.cat([part.weight, part.bias[:, None]], 1) if bias else part.weight
    assert torch.allclose(found.double(), expected.detach(), atol=1e-3)
    assert all(fit.explained_after >= fit.explained_before - 1e-9 for fit in fits)


@pytest.mark.parametrize("make, shape", [(network, (12,)), (convolutional, (1, 8, 8))])
def test_a_network_with_itself_comes_back(make, shape):
    module, x = make(), samples(shape=shape)
    for method in ("vanilla", "ot-wts", "weight-matching"):
        found = fused([module, module], [x, 2 * x], method)[0]
        assert torch.allclose(found(x), module(x), atol=1e-3), method


def test_a_permuted_twin_comes_back_through_its_maps():
    module, x = network(bias=True), samples()
    for method in ("ot-acts", "weight-matching"):
        found = fused([permuted(module), module], [samples(seed=3), x], method)[0]
        assert torch.allclose(found(x), module(x), atol=1e-3), method


def test_maps_without_a_layer_are_refitted_too():
    """A HookedTransformer multiplies with bare parameters; its clients are two, one moved in its heads and units."""
    tokens = torch.randint(0, 11, (60, 6), generator=torch.Generator().manual_seed(0))
    clients = [
        build(DecoderConfig(vocabulary=11, width=8, hidden=12, context=6, heads=2), seed).eval() for seed in (0, 1)
    ]
    own = [tokens[:30], tokens[30:]]
    plain, problem, *_ = fused(clients, own, "ot-acts", refit=False)
    refitted, *_, fits = fused(clients, own, "ot-acts")
    assert {w.name for w in problem.writers if not w.layered} <= {fit.layer for fit in fits} != set()
    assert all(fit.explained_after >= fit.explained_before - 1e-9 for fit in fits)
    assert sum(fit.explained_after > fit.explained_before + 0.01 for fit in fits) > len(fits) // 2
    assert available(problem)["regmean"] is None
    averaged = solve(problem, "regmean", refit=False, repair=False)
    assert {w.name for w in problem.writers if not w.layered} <= set(averaged.notes["layers"])
    itself = fused([clients[0], clients[0]], own, "vanilla")[0]
    with torch.no_grad():
        assert torch.allclose(itself(tokens), problem.clients[0](tokens), atol=1e-3)
        assert not torch.allclose(refitted(tokens), plain(tokens), atol=1e-2)


def test_it_brings_an_average_nearer_to_each_client_on_its_own_inputs():
    clients = [convolutional(seed=0), convolutional(seed=1)]
    own = [samples(shape=(1, 8, 8), seed=1), samples(shape=(1, 8, 8), seed=2).abs()]
    plain = fused(clients, own, "ot-acts", refit=False)[0]
    refitted, *_, fits = fused(clients, own, "ot-acts")
    assert {"3", "6", "8"} <= {fit.layer for fit in fits}

    def error(module):
        return sum(float((module(x) - client(x)).detach().pow(2).mean()) for client, x in zip(clients, own))

    assert error(refitted) < 0.6 * error(plain)


def test_what_does_not_fit_is_a_one_line_error():
    modules, x = [network(), network(seed=1)], samples()
    module, problem, alignments, moments, _ = fused(modules, [x, x], "vanilla")
    with pytest.raises(BadOption, match="ridge"):
        moment_refit(problem, module, alignments, moments, ridge=0)
    wrong = [{name: gram[:-1, :-1] for name, gram in each.items()} for each in moments]
    with pytest.raises(SpaceMismatch, match="expected 12 squared"):
        moment_refit(problem, module, alignments, wrong)
    with pytest.raises(BadOption, match="cannot be refitted from moments"):
        Fusing("feature-zip", refit="moments")
    assert moment_refit(problem, module, alignments, [{}, {}]) == []
