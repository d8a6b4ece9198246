"""Networks and clients of the kinds that used to end a comparison, or to change it in silence."""

import copy

import pytest
import torch
from torch import nn

import featalign as fa
from featalign.clients import ViTConfig, build
from featalign.data import partition
from featalign.fuse import FusionProblem, solve
from featalign.spaces import Symmetry, moved, rebuilt, trace
from featalign.spaces.check import random_transform
from featalign.studies.compare.config import RunConfig
from featalign.studies.compare.run import run

from ..fuse.modules import MODULES, NORMS, shaken
from .networks import draw

QUICK = {"curve": 0, "progress": False, "evidence": False}
EXACT = ("vanilla", "ot-acts", "ot-wts")


def first(outputs):
    return outputs[0] if isinstance(outputs, tuple) else outputs


ODD = ("dense-hardswish", "glu", "pixel-shuffle", "weight-norm", "tokens-out", "pooled-logits", "skip", "two-heads",
       "wide-and-deep", "loop", "softmax-behind", "attention", "gru", "mixer", "per-position")  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_whatever_writes_the_output_is_compared_and_refitted(name):
    modules, x = [shaken(name, seed=seed) for seed in (0, 1)], draw(60, 12)
    with torch.no_grad():
        out = first(modules[0](x))
    labels = out.argmax(1 if name == "per-position" or out.dim() == 2 else -1)
    frame = fa.compare(modules, x, (x, labels), methods=EXACT, **QUICK).to_frame()
    assert frame["accuracy"]["client-A"] == 1
    assert {f"{method}+refit" for method in EXACT} <= set(frame.index) and frame["accuracy"].between(0, 1).all()


@pytest.mark.parametrize("inputs", ["own", "float32"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_clients_of_every_type_are_compared(dtype, inputs):
    modules = [shaken("dense-relu", dtype, seed) for seed in (0, 1)]
    x = draw(80, 12).to(dtype if inputs == "own" else torch.float32)
    with torch.no_grad():
        labels = modules[0](x.to(dtype)).argmax(1)
    methods = (*EXACT, "zip", "weight-matching")
    result = fa.compare(modules, x, (x, labels), methods=methods, **QUICK)
    frame = result.to_frame()
    assert {f"{method}+refit" for method in methods} <= set(frame.index) and frame["accuracy"]["client-A"] == 1
    fused = fa.fuse.fuse(modules, x, "zip", task="classification").module
    assert {p.dtype for p in fused.parameters()} == {dtype} and all(p.isfinite().all() for p in fused.parameters())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_clients_of_every_type_are_diagnosed(dtype):
    module, x = shaken("one-layer", dtype), draw(240, 12)
    with torch.no_grad():
        labels = module(x.to(dtype)).argmax(1)
    assert fa.diagnose(module, (x.to(dtype), labels), steps=20, sweep_steps=0, progress=False).page()


class Normed(nn.Module):
    """A stream under RMSNorm, whose gains are ones until training moves them."""

    def __init__(self, seed, trained):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.i, self.up, self.down, self.o = nn.Linear(12, 8), nn.Linear(8, 9), nn.Linear(9, 8), nn.Linear(8, 4)
            self.norms = nn.ModuleList(nn.RMSNorm(8) for _ in range(2))
            if trained:
                for norm in self.norms:
                    norm.weight.data.add_(0.3 * torch.randn(8))

    def forward(self, x):
        h = self.i(x)
        h = h + self.down(self.up(self.norms[0](h)).relu())
        return self.o(self.norms[1](h))


def test_gains_of_one_beside_trained_gains():
    fresh, trained, x = Normed(0, False), Normed(1, True), draw(60, 12)
    for modules in ([fresh, trained], [trained, fresh]):
        frame = fa.compare(modules, x, (x, torch.arange(60) % 4), methods=(*EXACT, "procrustes"), **QUICK).to_frame()
        assert "procrustes+refit" in frame.index
        back = fa.fuse.fuse([modules[0], copy.deepcopy(modules[0])], x, "procrustes", task="classification").module
        assert torch.allclose(back(x), modules[0](x), atol=1e-4)


def test_a_shipped_vit_with_permuted_heads_comes_back():
    config = ViTConfig(size=4, patch=2, width=16, depth=2, heads=4, hidden=24, outputs=5)
    client, x = build(config, 0).eval(), draw(100, 3, 4, 4)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in client.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    graph = trace(client, x[:2])
    maps = {space.name: random_transform(space.size, Symmetry.PERMUTATION, generator) for space in graph.hidden}
    assert any(space.name.endswith("heads") for space in graph.hidden)
    twin = rebuilt(client, moved(client, graph, maps)).eval()
    for refit in (False, True):
        fused = fa.fuse.fuse([twin, client], x, "ot-acts", task="classification", refit=refit).module
        assert torch.allclose(fused(x), client(x), atol=1e-4)


class Functional(nn.Module):
    """Weights that are multiplied without their layer being called."""

    def __init__(self, seed):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.weight, self.h, self.o = nn.Parameter(torch.randn(8, 12) / 3), nn.Linear(8, 8), nn.Linear(8, 5)

    def forward(self, x):
        h = nn.functional.linear(x, self.weight).relu()
        return self.o(nn.functional.linear(h, self.h.weight, self.h.bias).tanh())


@pytest.mark.parametrize("make", [Functional, lambda seed: shaken("attention", seed=seed)], ids=["linear", "attention"])
def test_layers_used_functionally_are_repaired_and_refitted_or_left_alone(make):
    modules, x = [make(seed).eval() for seed in (0, 1)], draw(60, 12)
    frame = fa.compare(modules, x, (x, torch.arange(60) % 5), methods=EXACT, **QUICK).to_frame()
    assert {f"{method}+refit" for method in EXACT} <= set(frame.index)
    for method in EXACT:
        same = [modules[0], copy.deepcopy(modules[0])]
        fused = fa.fuse.fuse(same, x, method, task="classification", repair=True).module
        assert torch.allclose(fused(x), modules[0](x), atol=1e-5)


def test_a_client_with_few_samples_ends_nothing(tmp_path, monkeypatch):
    """Eight clients by a skewed Dirichlet law: one is too small for dictionaries, and the table says who."""
    monkeypatch.setattr("featalign.dictionaries.store.FEW_STEPS", 5)
    config = RunConfig(
        seeds=1, epochs=1, split="dirichlet", alpha=0.1, clients=8, probe=40, augment="none", curve=0,
        model_options={"hidden": (6,)}, evidence=False, methods=(),
    )  # fmt: skip
    dataset = fa.data.load("digits")
    parts = partition(dataset.train_labels, "dirichlet", 8, 0, dataset.class_names, alpha=0.1)
    sizes = [len(part) for part in parts.indices]
    assert min(sizes) < 40
    result = run(config, tmp_path / "run", progress=False)
    frame, methods = result.to_frame(), result.frames["methods"].set_index("method")
    assert {"vanilla", "ot-acts", "zip"} <= set(frame.index)
    small = parts.client_names[sizes.index(min(sizes))]
    assert f"client '{small}'" in methods.loc["feature-project", "reason"]
    assert methods.loc["feature-project", "reason"].split(":")[-1].strip()[:30] in result.page()


def test_more_clients_than_letters_are_called_by_letters():
    modules, x = [shaken("one-layer", seed=seed) for seed in range(28)], draw(20, 12)
    result = fa.compare(modules, x, (x, torch.arange(20) % 5), methods=("vanilla",), **QUICK)
    rows = set(result.to_frame().index)
    assert {"client-Z", "client-AA", "client-AB"} <= rows and not any("[" in row for row in rows)


def chain(depth):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [part for _ in range(depth) for part in (nn.Linear(6, 6), nn.Tanh())]
        return nn.Sequential(*layers, nn.Linear(6, 3)).eval()


class Calls:
    """How often the modules of a network run."""

    def __init__(self, module):
        self.count = 0
        for part in module.modules():
            if not list(part.children()):
                part.register_forward_pre_hook(self.add)

    def add(self, *_):
        self.count += 1


def test_work_of_a_refit_grows_as_the_network_does(monkeypatch):
    """Layers are refitted from activations that are kept: twice the depth runs twice the modules, not four times."""
    import featalign.fuse.engine as engine

    found, apply_rule = {}, engine.apply_rule
    for depth in (20, 40):
        counted = []

        def counting(*arguments, counted=counted):
            fused = apply_rule(*arguments)
            counted.append(Calls(fused))
            return fused

        monkeypatch.setattr(engine, "apply_rule", counting)
        client, x = chain(depth), draw(30, 12)[:, :6]
        problem = FusionProblem(fa.clients.Cohort.of([client, copy.deepcopy(client)], x, task="classification"))
        solve(problem, "ot-wts", refit=True, repair=True)
        found[depth] = counted[0].count
    assert 0 < found[40] < 2.5 * found[20]


def test_the_zoo_is_large_and_has_every_norm():
    assert len(MODULES) >= 60 and len(NORMS) == 3
