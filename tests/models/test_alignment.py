"""Alignment of whole networks: planted permutations, transformers, repair and the refit of convolutions."""

from __future__ import annotations

import copy

import pytest
import torch
from featalign.align.orthogonal import polar, procrustes_activations
from featalign.align.transformer import align_softly, align_transformer, attention_layers, fold_norms
from torch import nn

from featalign.align.weights import match_weights
from featalign.bench.step0 import METHODS, planted
from featalign.clients import build
from featalign.clients.families.decoder import DecoderConfig
from featalign.clients.families.resnet import ResNet20Config
from featalign.clients.families.vgg import VGGConfig
from featalign.clients.families.vit import ViTConfig
from featalign.errors import ArchitectureMismatch, BadOption, ProbeError, SpaceMismatch
from featalign.fuse import FusionProblem, fuse
from featalign.fuse.repair import output_statistics, re_estimate, repair, repair_from_moments
from featalign.spaces import SpaceGraph, Symmetry, affine, collect, moved, rebuilt, trace
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


def test_polar_recovers_a_rotation() -> None:
    module = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 2))
    x = torch.randn(200, 6)
    graph = trace(module, x)
    rotation = random_transform(5, Symmetry.ORTHOGONAL, torch.Generator().manual_seed(0))
    target = rebuilt(module, moved(module, graph, {"0": rotation}))
    found = procrustes_activations(module, target, graph["0"], x)
    assert torch.allclose(found.out.double(), rotation.out, atol=1e-3) and found.residual < 1e-4
    assert torch.allclose(polar(rotation.out).out.double(), rotation.out, atol=1e-6)


def _decoder() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    config = DecoderConfig(vocabulary=20, width=24, heads=3, hidden=30, context=12)
    return shake(build(config, 0)), torch.randint(0, 20, (40, 12))


def test_folded_norms_leave_the_function_alone() -> None:
    module, tokens = _decoder()
    folded = fold_norms(module, tokens[:2])
    assert output_change(outputs_of(module, tokens), outputs_of(folded, tokens)) < 1e-4
    stream = trace(folded, tokens[:2])["embed"]
    assert stream.symmetry is Symmetry.ORTHOGONAL
    pooled = build(ViTConfig(width=16, heads=2, depth=1, hidden=20, size=8), 0)
    with pytest.raises(SpaceMismatch, match="read by no Linear"):
        fold_norms(pooled, torch.randn(2, 3, 8, 8))
    encoder = nn.Sequential(nn.Linear(4, 10), _PreNorm(), nn.LayerNorm(10), nn.Linear(10, 3))
    x = torch.randn(5, 4)
    assert output_change(outputs_of(shake(encoder), x), outputs_of(fold_norms(encoder, x), x)) < 1e-4


class _PreNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ln, self.fc1, self.fc2 = nn.LayerNorm(10), nn.Linear(10, 12), nn.Linear(12, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.fc2(self.fc1(self.ln(x)).relu())


@pytest.mark.parametrize("kind", ["activations", "weights"])
def test_transformer_alignment_undoes_a_planted_transform(kind: str) -> None:
    module, tokens = _decoder()
    source = fold_norms(module, tokens[:2])
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
    found = align_transformer(source, target, graph, tokens, kind)
    assert output_change(outputs_of(source, tokens), outputs_of(found.module, tokens)) < 1e-4
    state = moved(found.module, graph, found.alignment.maps)
    middle = {
        n: (t + state[n]) / 2 if t.isfinite().all() and t.is_floating_point() else t
        for n, t in target.state_dict().items()
    }
    assert output_change(outputs_of(target, tokens), outputs_of(rebuilt(target, middle), tokens)) < 1e-2
    with pytest.raises(BadOption, match="unknown stream map"):
        align_transformer(source, target, graph, tokens, "guess")


def test_soft_alignment_has_a_map_per_space() -> None:
    module, tokens = _decoder()
    graph = trace(module, tokens[:2])
    found = align_softly(module, module, graph, tokens)
    assert set(found.maps) == {space.name for space in graph.hidden}
    assert all(torch.allclose(m.out.sum(1), torch.ones(len(m.out)), atol=1e-4) for m in found.maps.values())


def _problem(config: VGGConfig | ResNet20Config) -> FusionProblem:
    clients = tuple(shake(build(config, seed)) for seed in range(2))
    x = torch.randn(60, 3, 16, 16)
    graphs = tuple(trace(client, x[:2]) for client in clients)
    return FusionProblem(clients, graphs, x, x, (0.5, 0.5), 1)


def test_repair_gives_units_the_parents_statistics() -> None:
    torch.manual_seed(0)
    problem = _problem(VGGConfig(width=1 / 16, size=16))
    raw = fuse(problem, "vanilla", with_repair=False)
    fixed = copy.deepcopy(raw.module)
    report = repair(problem, fixed, raw.alignments)
    assert len(report) == 8 and report[-1].spread_before < 1
    site = Site("conv5")
    own = [collect(client, problem.probe, [site])[site].double().std(0) for client in problem.clients]
    got = collect(fixed, problem.probe, [site])[site].double().std(0)
    assert torch.allclose(got, (own[0] + own[1]) / 2, rtol=1e-2)
    alone = repair(problem.mixed((0.0, 1.0)), copy.deepcopy(problem.clients[1]), raw.alignments)
    assert all(abs(found.spread_before - 1) < 1e-3 and found.shift_before < 1e-3 for found in alone)
    with pytest.raises(ProbeError):
        repair(
            FusionProblem(problem.clients, problem.graphs, problem.probe[:1], problem.probe, (0.5, 0.5), 1), fixed, []
        )


def test_batch_norm_is_estimated_again() -> None:
    torch.manual_seed(0)
    problem = _problem(ResNet20Config(width=0.25))
    client = copy.deepcopy(problem.clients[0])
    assert re_estimate(client, problem.probe) == 21
    site = Site("stem")
    assert torch.allclose(client.norm.running_mean, collect(client, problem.probe, [site])[site].mean(0), atol=1e-3)
    assert client.norm.momentum == 0.1 and not client.training
    assert re_estimate(nn.Linear(2, 2), torch.randn(3, 2)) == 0


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
    client, graph, x = problem.clients[0], problem.graphs[0], problem.probe
    generator = torch.Generator().manual_seed(3)
    maps = {s.name: random_transform(s.size, Symmetry.PERMUTATION, generator) for s in graph.hidden}
    twin = rebuilt(client, moved(client, graph, maps))
    same = FusionProblem((client, twin), (graph, graph), x, x, (0.5, 0.5), 1)
    for method in ("ot-acts", "weight-matching"):
        result = fuse(same, method, with_repair=False)
        assert output_change(outputs_of(client, x), outputs_of(result.module, x)) < 1e-3
    fits = fuse(problem, "ot-acts", with_refit=True).fits
    assert len(fits) >= 8 and all(fit.explained_after >= fit.explained_before - 1e-6 for fit in fits)
