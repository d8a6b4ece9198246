"""A network fused with itself comes back, and so it does with a permuted twin: every method, stage, head and type."""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from featalign.clients import Cohort
from featalign.dictionaries import NeuronBasis
from featalign.fuse import METHODS, FusionProblem, available, solve
from featalign.spaces import Symmetry, moved, rebuilt, trace
from featalign.spaces.capture import evaluating
from featalign.spaces.check import random_transform

from .modules import MODULES, dense, shaken

TOLERANCE = {torch.float64: 1e-5, torch.float32: 2e-5, torch.float16: 2e-2, torch.bfloat16: 1e-1}
STAGES = ((False, False, None), (True, True, None), (True, False, "mean-logits"), (True, False, "none"))


@cache
def inputs(count: int = 120, seed: int = 1) -> torch.Tensor:
    return torch.randn(count, 12, generator=torch.Generator().manual_seed(seed))


def outputs(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with evaluating(module):
        out = module(x.to(next(module.parameters()).dtype))
    return torch.cat([part.flatten(1).double() for part in (out if isinstance(out, tuple) else (out,))], 1)


def problem_of(a: nn.Module, b: nn.Module) -> FusionProblem:
    cohort = Cohort.of([a, b], inputs(), task="classification")
    bases = {space.name: (NeuronBasis(space.size),) * 2 for space in cohort.graphs[0].hidden}
    return FusionProblem(cohort, dictionaries=bases)


def change(problem: FusionProblem, method: str, refit: bool, repair: bool, head: str | None) -> float:
    """Relative change of the reference's outputs on fresh inputs."""
    result = solve(problem, method, refit=refit, repair=repair, head=head)
    fresh = inputs(60, seed=2)
    want, got = outputs(problem.clients[problem.reference], fresh), outputs(result.module, fresh)
    return float((got - want).abs().max() / want.abs().max())


def methods_of(problem: FusionProblem) -> list[str]:
    return [name for name, reason in available(problem).items() if reason is None and METHODS[name].exact]


@pytest.mark.parametrize("name", MODULES)
def test_a_network_fused_with_itself_comes_back(name: str) -> None:
    module = shaken(name)
    problem = problem_of(module, copy.deepcopy(module))
    for method in methods_of(problem):
        for refit, repair, head in STAGES:
            if refit in METHODS[method].stages:
                error = change(problem, method, refit, repair, head)
                assert error <= TOLERANCE[torch.float32], (method, refit, repair, head, error)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", MODULES)
def test_in_every_type(name: str, dtype: torch.dtype) -> None:
    module = shaken(name, dtype)
    problem = problem_of(module, copy.deepcopy(module))
    assert next(solve(problem, "vanilla").module.parameters()).dtype == dtype
    for method in ("ot-acts", "zip") if "zip" in methods_of(problem) else ("ot-acts",):
        error = change(problem, method, True, True, None)
        assert error <= TOLERANCE[dtype], (method, error)


def twin_of(module: nn.Module, seed: int = 3) -> nn.Module:
    """The same function with the units of every hidden space in another order."""
    graph = trace(module, inputs(2))
    generator = torch.Generator().manual_seed(seed)
    maps = {space.name: random_transform(space.size, Symmetry.PERMUTATION, generator) for space in graph.hidden}
    return rebuilt(module, moved(module, graph, maps))


SAMPLED = [name for name in MODULES if not name.startswith("dense") or name in ("dense-relu", "dense-gelu")]
AMBIGUOUS = {
    "dead-units": "units that are constant on the probe cannot be told apart by activations",
    "twin-units": "two units are the same",
    "deep": "units of the last layers are constant on most probes",
}


@pytest.mark.parametrize("name", [name for name in SAMPLED if name not in AMBIGUOUS])
def test_a_network_fused_with_a_permuted_twin_comes_back(name: str) -> None:
    module = shaken(name)
    twin = twin_of(module)
    assert float((outputs(twin, inputs()) - outputs(module, inputs())).abs().max()) < 1e-4
    problem = problem_of(twin, module)
    able = methods_of(problem)
    for method in ("ot-acts", "feature-project", "zip"):
        if method in able:
            for refit, repair, head in STAGES[:2]:
                error = change(problem, method, refit, repair, head)
                assert error <= 1e-4, (method, refit, repair, head, error)


@pytest.mark.parametrize("method", ["ot-acts", "ot-wts"])
@pytest.mark.parametrize("name", ["attention", "one-head", "grouped-attention", "shared-attention"])
def test_heads_come_back_whatever_the_draw(name: str, method: str) -> None:
    """Four networks: a space that heads alone write says nothing before they are matched, nor do their members."""
    for seed in range(4):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = MODULES[name]().eval()
            with torch.no_grad():
                for parameter in module.parameters():
                    parameter.add_(0.1 * torch.randn_like(parameter))
        assert change(problem_of(twin_of(module), module), method, False, False, None) <= 1e-4, seed


@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    activation=st.sampled_from([nn.ReLU, nn.Tanh, nn.GELU, nn.SiLU, nn.ELU, nn.Sigmoid, nn.Softplus]),
    seed=st.integers(0, 10**6),
    method=st.sampled_from(["vanilla", "ot-acts", "ot-wts", "weight-matching", "zip", "feature-project"]),
    refit=st.booleans(),
    repair=st.booleans(),
    mixing=st.floats(0.05, 0.95),
)
def test_at_any_weights_and_mixing(activation, seed, method, refit, repair, mixing) -> None:  # type: ignore[no-untyped-def]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = dense(activation).eval()
    problem = problem_of(module, copy.deepcopy(module)).mixed((mixing, 1 - mixing))
    assert change(problem, method, refit, repair, None) <= TOLERANCE[torch.float32]
