"""Fusion: what must come back unchanged, at any widths, whatever the method."""

import pytest
import torch
from torch import nn

from featalign.clients import Ensemble
from featalign.dictionaries import NeuronBasis
from featalign.errors import ArchitectureMismatch, BadOption, NotFinite, ProbeError, SpaceMismatch, UnknownName
from featalign.fuse import METHODS, fuse, ledger
from featalign.fuse.head import log_mixture, mixture
from featalign.fuse.refit import map_targets, refit

from .conftest import duplicated, network, permuted, problem_of

MATCHING = ("ot-acts", "ot-wts")


def outputs(module, inputs):
    with torch.no_grad():
        return module(inputs)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("method", MATCHING)
def test_fusing_with_a_permuted_copy_gives_the_client_back(method, bias, probe):
    client = network(bias=bias)
    result = fuse(problem_of([permuted(client), client], probe), method)
    assert torch.allclose(outputs(result.module, probe), outputs(client, probe), atol=1e-5)


@pytest.mark.parametrize("with_refit", [False, True])
@pytest.mark.parametrize("method", ["vanilla", "ot-acts", "ot-wts", "zip"])
def test_fusing_a_client_with_itself_gives_itself(method, with_refit, probe):
    client = network()
    problem = problem_of([client, client], probe)
    result = fuse(problem, method, with_refit, head="mean-logits", ridge=1e-6)
    assert torch.allclose(outputs(result.module, probe), outputs(client, probe), atol=2e-3)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("copies", [1, 2, 3])
@pytest.mark.parametrize("method", MATCHING)
def test_duplicated_units_fuse_exactly_at_any_width(method, copies, bias, probe):
    client = network(bias=bias)
    for pair in ([duplicated(client, copies), client], [client, duplicated(client, copies)]):
        if method == "ot-wts" and copies > 1:
            continue  # outgoing weights are divided among copies, so incoming rows of deeper layers differ in length
        result = fuse(problem_of(pair, probe), method)
        assert torch.allclose(outputs(result.module, probe), outputs(client, probe), atol=1e-5)


def test_neuron_basis_is_feature_basis_with_the_identity(probe):
    a, b = network(seed=1), network(seed=2)
    plain = problem_of([a, b], probe)
    identity = {space.name: (NeuronBasis(space.size),) * 2 for space in plain.graph.hidden}
    result = fuse(problem_of([permuted(b), b], probe, dictionaries=identity), "feature-ot")
    assert torch.allclose(outputs(result.module, probe), outputs(b, probe), atol=1e-5)


def test_mixing_weights_zero_and_one_return_a_client(probe):
    a, b = network(seed=1), network(seed=2)
    problem = problem_of([a, b], probe)
    for method in ("vanilla", "ot-acts", "zip"):
        for mixing, expected in (((1.0, 0.0), a), ((0.0, 1.0), b)):
            fused = fuse(problem.mixed(mixing), method, with_refit=True).module
            assert torch.allclose(outputs(fused, probe), outputs(expected, probe), atol=1e-3), (method, mixing)


def test_refit_reaches_targets_that_are_linear_in_the_inputs(probe):
    a, b = network(seed=1), network(seed=2)
    problem = problem_of([a, b], probe)
    proposal = METHODS["ot-acts"].propose(problem)
    module = network(seed=9)
    refit(problem, module, map_targets(proposal.alignments), exact_first=False, ridge=1e-9, head="none")
    layer = module[0].weight.double()
    maps = proposal.alignments[0].maps
    name = problem.graph.hidden[0].name
    expected = 0.5 * (maps[name].out.double() @ a[0].weight.double()) + 0.5 * b[0].weight.double()
    assert torch.allclose(layer, expected, atol=1e-4)


def test_refit_explains_more_of_the_target_than_the_aligned_average(probe):
    result = fuse(problem_of([network(seed=1), network(seed=2)], probe), "ot-acts", with_refit=True)
    assert result.fits and all(fit.explained_after > fit.explained_before for fit in result.fits)


def test_log_mixture_does_not_let_a_confident_client_veto():
    sure_of_0, sure_of_1 = torch.tensor([[20.0, 0.0, 0.0]]), torch.tensor([[0.0, 4.0, 0.0]])
    half = mixture([sure_of_0, sure_of_1], (0.5, 0.5))
    assert torch.allclose(half.sum(-1), torch.ones(1, dtype=torch.float64))
    counts = torch.tensor([[0, 10, 10], [10, 10, 10]])
    informed = mixture([sure_of_0, sure_of_1], (0.5, 0.5), counts)
    assert informed[0, 0] < half[0, 0]  # a client that never saw class 0 has no say on it
    target = log_mixture([sure_of_0, sure_of_1], (0.5, 0.5))
    assert torch.allclose(target.sum(-1), torch.zeros(1, dtype=torch.float64), atol=1e-9)


def test_ledger_of_an_exact_map_is_clean(probe):
    client = network()
    problem = problem_of([permuted(client), client], probe)
    for entry in ledger(problem, METHODS["ot-acts"].propose(problem).alignments).values():
        assert entry["explained_variance"] == pytest.approx(1, abs=1e-6)
        assert entry["commutation_defect"] == pytest.approx(0, abs=1e-9)
        assert entry["round_trip"] == pytest.approx(0, abs=1e-9)


def test_ensemble_of_one_client_is_the_client(probe):
    client = network()
    for head in (None, "mean-logits"):
        ensemble = Ensemble([client], (1.0,), head=head)
        assert torch.equal(outputs(ensemble, probe).argmax(-1), outputs(client, probe).argmax(-1))


def test_bad_problems_are_named(probe):
    a, b = network(seed=1), network(seed=2)
    with pytest.raises(UnknownName, match="ot-acts"):
        fuse(problem_of([a, b], probe), "ot-act")
    with pytest.raises(SpaceMismatch, match=r"16 units|32 units"):
        fuse(problem_of([duplicated(a, 2), b], probe), "vanilla")
    with pytest.raises(ArchitectureMismatch, match="depth"):
        problem_of([network((12, 16, 5)), b], probe)
    with pytest.raises(ProbeError, match="empty"):
        problem_of([a, b], probe, refit_inputs=probe[:0])
    with pytest.raises(BadOption, match="sum to one"):
        problem_of([a, b], probe, mixing=(0.5, 0.6))
    with pytest.raises(BadOption, match="train dictionaries first"):
        fuse(problem_of([a, b], probe), "feature-ot")
    broken = network(seed=1)
    with torch.no_grad():
        broken[0].weight[0, 0] = float("nan")
    with pytest.raises(NotFinite, match="client 0"):
        problem_of([broken, b], probe)


def test_a_capture_left_unfinished_keeps_neither_gradients_off_nor_the_mode(probe):
    from featalign.spaces.capture import stream

    client = network().train()
    reading = stream(client, probe, problem_of([client, client], probe).sites, batch_size=100)
    next(reading)
    assert torch.is_grad_enabled() and client.training


def convolutions(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 9, 4),
        ).eval()  # fmt: skip


def test_convolutional_units_are_pooled_and_a_network_zipped_with_itself_returns():
    pictures = torch.randn(300, 2, 6, 6)
    a, b = convolutions(1), convolutions(2)
    result = fuse(problem_of([a, a], pictures), "zip", True, head="mean-logits", ridge=1e-6)
    assert torch.allclose(outputs(result.module, pictures), outputs(a, pictures), atol=2e-3)
    fused = fuse(problem_of([a, b], pictures), "zip")
    taken = torch.cat([a[0].weight, b[0].weight]).detach()
    for unit in fused.module[0].weight:  # every first-layer unit is one client's unit as it was
        assert (taken - unit).flatten(1).norm(dim=1).min() < 1e-5
    assert sum(fused.notes["units_from_client"]["0"]) == 6


def test_unit_pools_refuse_normalised_and_skipping_networks():
    pictures = torch.randn(40, 2, 6, 6)
    network = nn.Sequential(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(96, 3)).eval()
    with pytest.raises(SpaceMismatch, match="unit pools want a chain"):
        fuse(problem_of([network, network], pictures), "zip")
