"""Fusion: what must come back unchanged, at any widths, whatever the method."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from featalign.data import Classification, Inputs
from featalign.dictionaries import NeuronBasis
from featalign.errors import ArchitectureMismatch, BadOption, NotFinite, ProbeError, UnknownName
from featalign.fuse import METHODS, available, fusion_method, ledger, propose, solve
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
    result = solve(problem_of([permuted(client), client], probe), method)
    assert torch.allclose(outputs(result.module, probe), outputs(client, probe), atol=1e-5)


@pytest.mark.parametrize("with_refit", [False, True])
@pytest.mark.parametrize("method", ["vanilla", "ot-acts", "ot-wts", "zip"])
def test_fusing_a_client_with_itself_gives_itself(method, with_refit, probe):
    client = network()
    problem = problem_of([client, client], probe)
    result = solve(problem, method, refit=with_refit)
    assert torch.allclose(outputs(result.module, probe), outputs(client, probe), atol=1e-5)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("copies", [1, 2, 3])
@pytest.mark.parametrize("method", MATCHING)
def test_duplicated_units_fuse_exactly_at_any_width(method, copies, bias, probe):
    client = network(bias=bias)
    for pair in ([duplicated(client, copies), client], [client, duplicated(client, copies)]):
        if method == "ot-wts" and copies > 1:
            continue  # outgoing weights are divided among copies, so incoming rows of deeper layers differ in length
        result = solve(problem_of(pair, probe), method)
        assert torch.allclose(outputs(result.module, probe), outputs(client, probe), atol=1e-5)


def test_neuron_basis_is_feature_basis_with_the_identity(probe):
    a, b = network(seed=1), network(seed=2)
    plain = problem_of([a, b], probe)
    identity = {space.name: (NeuronBasis(space.size),) * 2 for space in plain.graph.hidden}
    result = solve(problem_of([permuted(b), b], probe, dictionaries=identity), "feature-project")
    assert torch.allclose(outputs(result.module, probe), outputs(b, probe), atol=1e-5)


def test_mixing_weights_zero_and_one_return_a_client(probe):
    a, b = network(seed=1), network(seed=2)
    problem = problem_of([a, b], probe)
    for method in ("vanilla", "ot-acts", "zip"):
        for mixing, expected in (((1.0, 0.0), a), ((0.0, 1.0), b)):
            fused = solve(problem.mixed(mixing), method, refit=True).module
            assert torch.allclose(outputs(fused, probe), outputs(expected, probe), atol=1e-3), (method, mixing)


def test_refit_reaches_targets_that_are_linear_in_the_inputs(probe):
    a, b = network(seed=1), network(seed=2)
    problem = problem_of([a, b], probe)
    proposal = propose(problem, "ot-acts", {})
    module = network(seed=9)
    targets = map_targets(proposal.alignments)
    refit(problem, module, proposal.alignments, targets, exact_first=False, ridge=1e-9, head="none")
    layer = module[0].weight.double()
    maps = proposal.alignments[0].maps
    name = problem.graph.hidden[0].name
    expected = 0.5 * (maps[name].out.double() @ a[0].weight.double()) + 0.5 * b[0].weight.double()
    assert torch.allclose(layer, expected, atol=1e-4)


def test_refit_explains_more_of_the_target_than_the_aligned_average(probe):
    result = solve(problem_of([network(seed=1), network(seed=2)], probe), "ot-acts", refit=True)
    assert result.fits and all(fit.explained_after > fit.explained_before for fit in result.fits)


def test_log_mixture_does_not_let_a_confident_client_veto():
    task = Classification()
    sure_of_0, sure_of_1 = torch.tensor([[20.0, 0.0, 0.0]]), torch.tensor([[0.0, 4.0, 0.0]])
    half = task.mixture([sure_of_0, sure_of_1], (0.5, 0.5))
    assert torch.allclose(half.sum(-1), torch.ones(1, dtype=torch.float64))
    counts = torch.tensor([[0, 10, 10], [10, 10, 10]])
    informed = task.mixture([sure_of_0, sure_of_1], (0.5, 0.5), counts)
    assert informed[0, 0] < half[0, 0]  # a client that never saw class 0 has no say on it
    target = task.head_target([sure_of_0, sure_of_1], (0.5, 0.5))
    assert torch.allclose(target.softmax(-1), half, atol=1e-5)


def test_ledger_of_an_exact_map_is_clean(probe):
    client = network()
    problem = problem_of([permuted(client), client], probe)
    for entry in ledger(problem, propose(problem, "ot-acts", {}).alignments).values():
        assert entry["explained_variance"] == pytest.approx(1, abs=1e-6)
        assert entry["commutation_defect"] == pytest.approx(0, abs=1e-9)
        assert entry["round_trip"] == pytest.approx(0, abs=1e-9)


def test_bad_problems_are_named(probe):
    a, b = network(seed=1), network(seed=2)
    with pytest.raises(UnknownName, match="ot-acts"):
        solve(problem_of([a, b], probe), "ot-act")
    with pytest.raises(BadOption, match=r"equal widths; possible: .*ot-acts"):
        solve(problem_of([duplicated(a, 2), b], probe), "vanilla")
    with pytest.raises(BadOption, match=r"no option 'costs'.*cost"):
        solve(problem_of([a, b], probe), "ot-acts", costs="distance")
    with pytest.raises(ArchitectureMismatch, match="depth"):
        problem_of([nn.Sequential(nn.Linear(12, 16, bias=False), nn.Tanh(), nn.Linear(16, 5, bias=False)), b], probe)
    with pytest.raises(ProbeError, match="empty"):
        problem_of([a, b], probe, refit_inputs=probe[:0])
    with pytest.raises(BadOption, match="sum to one"):
        problem_of([a, b], probe, mixing=(0.5, 0.6))
    with pytest.raises(BadOption, match="sum to one"):
        problem_of([a, b], probe, mixing=(float("nan"), 1.0))
    with pytest.raises(BadOption, match="train dictionaries first"):
        solve(problem_of([a, b], probe), "feature-project")
    for ridge in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(BadOption, match="ridge"):
            solve(problem_of([a, b], probe), "ot-acts", refit=True, ridge=ridge)
    broken = network(seed=1)
    with torch.no_grad():
        broken[0].weight[0, 0] = float("nan")
    with pytest.raises(NotFinite, match="client 'A'"):
        problem_of([broken, b], probe)


def test_a_changed_probe_never_returns_an_old_plan(probe):
    a, b = network(seed=1), network(seed=2)
    problem = problem_of([a, b], probe)
    first = propose(problem, "ot-acts", {})
    other = replace(problem, cohort=problem.cohort.changed(probe=Inputs.of(probe[:50] ** 3)))
    assert propose(problem, "ot-acts", {}) is first
    again = propose(other, "ot-acts", {})
    name = problem.graph.hidden[0].name
    assert again is not first and not torch.equal(
        again.alignments[0].maps[name].out, first.alignments[0].maps[name].out
    )


def test_options_are_the_signature_and_reach_the_method(probe):
    problem = problem_of([network(seed=1), network(seed=2)], probe)
    assert METHODS["ot-acts"].options["cost"] == (str, "distance")
    result = solve(problem, "ot-acts", cost="correlation")
    assert result.name == "ot-acts(cost=correlation)"
    with pytest.raises(BadOption, match="choices: distance, correlation"):
        solve(problem, "ot-acts", cost="cosine")
    with pytest.raises(UnknownName, match="registered already"):
        fusion_method("zip", basis="pool")(lambda problem: None)


def test_methods_that_are_not_possible_say_why(probe):
    problem = problem_of([network(seed=1), network(seed=2)], probe)
    reasons = available(problem)
    assert reasons["ot-acts"] is None and "no rotation is a symmetry" in reasons["procrustes"]
    linear = nn.Sequential(nn.Linear(12, 4), nn.Linear(4, 5))
    assert available(problem_of([linear, linear], probe))["procrustes"] is None


def test_a_capture_left_unfinished_keeps_neither_gradients_off_nor_the_mode(probe):
    from featalign.spaces.capture import stream

    client = network().train()
    reading = stream(client, probe, problem_of([client, client], probe).activations.sites, batch_size=100)
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
    result = solve(problem_of([a, a], pictures), "zip", refit=True)
    assert torch.allclose(outputs(result.module, pictures), outputs(a, pictures), atol=1e-5)
    fused = solve(problem_of([a, b], pictures), "zip")
    taken = torch.cat([a[0].weight, b[0].weight]).detach()
    for unit in fused.module[0].weight:  # every first-layer unit is one client's unit as it was
        assert (taken - unit).flatten(1).norm(dim=1).min() < 1e-5
    assert sum(fused.notes["units_from_client"]["0"]) == 6


def test_a_normalised_network_is_zipped_and_latents_of_one_are_refused():
    pictures = torch.randn(40, 2, 6, 6)
    network = nn.Sequential(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(96, 3)).eval()
    problem = problem_of([network, network], pictures)
    fused = solve(problem, "zip").module
    assert torch.allclose(outputs(fused, pictures), outputs(network, pictures), atol=1e-5)
    with pytest.raises(BadOption, match="also written by a normalisation"):
        solve(problem, "feature-zip")
