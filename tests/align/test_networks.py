"""Alignment of whole networks: planted permutations, transformers, repair and the refit of convolutions."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from featalign.align import SpaceMap, align
from featalign.align.heads import aligned_state, attention_layers, gauged_state
from featalign.align.linear import polar
from featalign.align.weights import match_weights
from featalign.bench.step0 import METHODS, planted
from featalign.clients import Cohort, build
from featalign.clients.families.decoder import DecoderConfig
from featalign.clients.families.resnet import ResNet20Config
from featalign.clients.families.vgg import VGGConfig
from featalign.data import Inputs
from featalign.errors import ArchitectureMismatch, ProbeError
from featalign.fuse import FusionProblem, propose, solve
from featalign.fuse.repair import output_statistics, repair, repair_from_moments
from featalign.spaces import SpaceGraph, Symmetry, affine, canonical, collect, moved, rebuilt, trace
from featalign.spaces.capture import outputs_of
from featalign.spaces.check import output_change, random_transform
from featalign.spaces.graph import Site
from tests.spaces.zoo import ZOO, shake


def test_planted_permutations_of_residual_mlps() -> None:
    found = {(row.width, row.method): row for row in planted((30,), trials=5)}
    assert found[30, "ot-acts"].recovered == found[30, "weight-matching"].recovered == 1
    assert {method for _, method in found} == set(METHODS)


@pytest.mark.parametrize("name", ["vgg11", "resnet20-batch", "hf-bert", "mixed-convolutions"])
def test_weight_matching_finds_a_planted_transform(name: str) -> None:
    torch.manual_seed(0)
    module, example = ZOO[name]()
    graph = trace(shake(module), example)
    permuting = SpaceGraph(graph.spaces, graph.layers)
    generator = torch.Generator().manual_seed(0)
    truth = {s.name: random_transform(s.size, Symmetry.PERMUTATION, generator) for s in permuting.hidden}
    target = copy.deepcopy(module)
    target.load_state_dict(moved(module, graph, truth))
    found = match_weights(module, target, graph, rotate=False)
    assert found.diagnostics["similarity"] > 1 - 1e-6
    again = rebuilt(module, moved(module, graph, found.maps))
    assert output_change(outputs_of(target, example), outputs_of(again, example)) < 1e-3


def test_weight_matching_wants_one_architecture() -> None:
    a, b = (nn.Sequential(nn.Linear(4, 5), nn.ReLU(), *more, nn.Linear(5, 2)) for more in ((), (nn.Linear(5, 5),)))
    graphs = [trace(module, torch.randn(2, 4)) for module in (a, b)]
    with pytest.raises(ArchitectureMismatch):
        match_weights(a, b, *graphs)


def test_procrustes_recovers_a_rotation() -> None:
    module = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 2))
    x = torch.randn(200, 6)
    graph = trace(module, x)
    rotation = random_transform(5, Symmetry.ORTHOGONAL, torch.Generator().manual_seed(0))
    target = rebuilt(module, moved(module, graph, {"0": rotation}))
    problem = FusionProblem(Cohort.of([module, target], x, task="regression"))
    found = align(problem.pair(0), "procrustes").maps["0"]
    assert torch.allclose(found.out, rotation.out, atol=1e-3) and found.residual < 1e-4
    assert torch.allclose(polar(rotation.out), rotation.out, atol=1e-6)


def _decoder() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    config = DecoderConfig(vocabulary=20, width=24, heads=3, hidden=30, context=12)
    return shake(build(config, 0)), torch.randint(0, 20, (40, 12))


@pytest.mark.parametrize("method", ["procrustes", "procrustes-wts"])
def test_a_rotated_transformer_is_turned_back(method: str) -> None:
    module, tokens = _decoder()
    source = canonical(module, tokens[:2]).module
    graph = trace(source, tokens[:2])
    assert len(attention_layers(graph)) == 2 and all(len(layer.inner) == 2 for layer in attention_layers(graph))
    generator = torch.Generator().manual_seed(1)
    truth = {
        s.name: random_transform(
            s.size, s.symmetry if s.symmetry is not Symmetry.LINEAR else Symmetry.ORTHOGONAL, generator
        )
        for s in graph.hidden
    }
    target = rebuilt(source, moved(source, graph, truth))
    problem = FusionProblem(Cohort.of([source, target], tokens, task="next-token"))
    alignment = align(problem.pair(0), method)
    gauged = rebuilt(source, gauged_state(source, graph, alignment.gauge))
    assert alignment.gauge and output_change(outputs_of(source, tokens), outputs_of(gauged, tokens)) < 1e-4
    carried = rebuilt(source, aligned_state(source, graph, alignment))
    assert output_change(outputs_of(source, tokens), outputs_of(carried, tokens)) < 1e-3
    fused = solve(problem, method).module
    assert output_change(outputs_of(target, tokens), outputs_of(fused, tokens)) < 1e-2


def test_soft_alignment_has_a_map_per_space() -> None:
    module, tokens = _decoder()
    problem = FusionProblem(Cohort.of([module, module], tokens, task="next-token"))
    found = align(problem.pair(0), "sinkhorn", eps=0.1)
    assert set(found.maps) == {space.name for space in problem.graph.hidden}
    assert all(torch.allclose(m.out.sum(1), torch.ones(len(m.out)).double(), atol=1e-4) for m in found.maps.values())


def _problem(config: VGGConfig | ResNet20Config) -> FusionProblem:
    clients = [shake(build(config, seed)) for seed in range(2)]
    return FusionProblem(Cohort.of(clients, torch.randn(60, 3, 16, 16), task="classification"))


def _pictures(problem: FusionProblem) -> torch.Tensor:
    assert problem.cohort.probe.tensor is not None
    return problem.cohort.probe.tensor


def _settle(module: nn.Module, x: torch.Tensor) -> None:
    """Give batch normalisations the statistics of some data, as training does."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.reset_running_stats()
            part.momentum = None
    with torch.no_grad():
        module.train()(x)
    module.eval()


def test_repair_gives_units_the_parents_statistics() -> None:
    torch.manual_seed(0)
    problem = _problem(VGGConfig(width=1 / 16, size=16))
    raw = solve(problem, "vanilla", repair=False)
    fixed = copy.deepcopy(raw.module)
    report = repair(problem, fixed, raw.alignments)
    assert len(report) == 8 and report[-1].spread_before < 1
    site = Site("conv5")
    own = [collect(client, problem.cohort.probe, [site])[site].double().std(0) for client in problem.clients]
    got = collect(fixed, problem.cohort.probe, [site])[site].double().std(0)
    assert torch.allclose(got, (own[0] + own[1]) / 2, rtol=1e-2)
    alone = repair(problem.mixed((0.0, 1.0)), copy.deepcopy(problem.clients[1]), raw.alignments)
    assert all(abs(found.spread_before - 1) < 1e-3 and found.shift_before < 1e-3 for found in alone)
    single = problem.cohort.changed(probe=Inputs.of(_pictures(problem)[:1]))
    with pytest.raises(ProbeError):
        repair(FusionProblem(single), fixed, raw.alignments)


def test_statistics_of_batch_norms_are_those_that_make_its_outputs_like_the_parents() -> None:
    torch.manual_seed(0)
    problem = _problem(ResNet20Config(width=0.25))
    for module in problem.clients:
        _settle(module, _pictures(problem))
    raw, fixed = solve(problem, "vanilla", repair=False).module, solve(problem, "vanilla", repair=True).module
    site = Site("norm")
    parents = [collect(client, problem.cohort.probe, [site])[site].std(0).mean() for client in problem.clients]
    spread = {name: collect(net, problem.cohort.probe, [site])[site].std(0).mean() for name, net in
              (("raw", raw), ("fixed", fixed))}  # fmt: skip
    wanted = sum(parents) / 2
    assert abs(spread["fixed"] - wanted) < abs(spread["raw"] - wanted)
    client = problem.clients[0]
    same = FusionProblem(Cohort.of([client, copy.deepcopy(client)], torch.rand(50, 3, 16, 16), task="classification"))
    back = solve(same, "vanilla", repair=True).module  # a probe unlike the training data changes nothing here
    assert output_change(outputs_of(client, _pictures(problem)), outputs_of(back, _pictures(problem))) < 1e-5


@pytest.mark.parametrize("layer", [nn.Linear(6, 4), nn.Conv2d(3, 4, 3, 2, 1), nn.Conv1d(3, 4, 3, dilation=2)])
def test_closed_form_statistics(layer: nn.Module) -> None:
    torch.manual_seed(0)
    inputs = torch.randn(50, 6) if isinstance(layer, nn.Linear) else torch.randn(50, 3, 9)
    inputs = torch.randn(50, 3, 9, 9) if isinstance(layer, nn.Conv2d) else inputs
    rows = affine.rows(layer, inputs).double()
    outputs = layer(inputs).detach()
    flat = outputs if outputs.dim() == 2 else outputs.movedim(1, -1).reshape(-1, 4)
    assert torch.allclose((rows @ affine.matrix(layer).double().T + layer.bias).float(), flat, atol=1e-5)
    mean, deviation = output_statistics(layer, rows.mean(0), rows.T.cov(correction=0))
    assert torch.allclose(mean.float(), flat.mean(0), atol=1e-5)
    assert torch.allclose(deviation.float(), flat.std(0, correction=0), atol=1e-4)
    repair_from_moments(layer, rows.mean(0), rows.T.cov(correction=0), torch.ones(4), 2 * torch.ones(4))
    again = output_statistics(layer, rows.mean(0), rows.T.cov(correction=0))
    assert torch.allclose(again[0].float(), torch.ones(4), atol=1e-5) and torch.allclose(
        again[1].float(), 2 * torch.ones(4), atol=1e-4
    )


@pytest.mark.parametrize(
    "config", [VGGConfig(width=1 / 16, size=16), ResNet20Config(width=0.25)], ids=["vgg11", "resnet20"]
)
def test_fusing_a_network_with_its_permuted_copy_returns_it(config: VGGConfig | ResNet20Config) -> None:
    torch.manual_seed(0)
    problem = _problem(config)
    client, graph, x = problem.clients[0], problem.graphs[0], _pictures(problem)
    generator = torch.Generator().manual_seed(3)
    maps = {s.name: random_transform(s.size, Symmetry.PERMUTATION, generator) for s in graph.hidden}
    twin = rebuilt(client, moved(client, graph, maps))
    same = FusionProblem(Cohort.of([twin, client], x, task="classification"))
    for method in ("ot-acts", "weight-matching"):
        for repaired in (False, True):
            result = solve(same, method, repair=repaired)
            assert output_change(outputs_of(client, x), outputs_of(result.module, x)) < 1e-3, (method, repaired)
    fits = solve(problem, "ot-acts", refit=True).fits
    assert len(fits) >= 8 and all(fit.explained_after >= fit.explained_before - 1e-6 for fit in fits)


def test_widths_may_differ_and_plans_stay_with_their_maps() -> None:
    narrow, wide = (nn.Sequential(nn.Linear(6, n), nn.ReLU(), nn.Linear(n, 3)) for n in (5, 8))
    problem = FusionProblem(Cohort.of([narrow, wide], torch.randn(40, 6), task="classification"))
    alignment = propose(problem, "ot-acts", {}).alignments[0]
    found = alignment.maps["0"]
    assert isinstance(found, SpaceMap) and found.out.shape == (8, 5) and alignment.plans["0"].a.shape == (5,)
