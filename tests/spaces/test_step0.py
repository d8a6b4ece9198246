"""Step 0: random admissible maps leave every network's outputs where they are, and a broken handler is caught."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from featalign.errors import TraceError
from featalign.spaces import SpaceGraph, Symmetry, check, trace
from featalign.spaces.tracing.registry import HANDLERS
from tests.spaces.zoo import ZOO, shake

# spaces that must be free to move, at least, so that a tracer that pins everything cannot pass
AT_LEAST = {
    "mlp": 2,
    "hf-bert": 10,
    "hf-gpt2": 9,
    "hf-llama": 9,
    "hf-vit": 9,
    "hf-resnet": 7,
    "hf-mobilenet": 25,
    "resnet18": 12,
}


def faults(name: str) -> list[str]:
    """What goes wrong when a network of the zoo is traced and moved at random; empty when its outputs stay."""
    torch.manual_seed(0)
    module, example = ZOO[name]()
    try:
        graph = trace(shake(module), example)
        figures = check(graph, module, example, tolerance=1e-5, seed=1)
    except TraceError as error:
        return [str(error)]
    found = {
        f"outputs move by {figures.error}": not figures.error < 1e-5,
        f"only {figures.spaces} spaces are free": figures.spaces < AT_LEAST.get(name, 1),
        f"only {figures.moved_share} of the weights move": not figures.moved_share > 0.5,
        f"warnings: {graph.warnings}": bool(graph.warnings),
    }
    return [fault for fault, present in found.items() if present]


@pytest.mark.parametrize("name", ZOO)
def test_step0(name: str) -> None:
    assert faults(name) == []


@pytest.mark.parametrize("seed", range(3))
def test_step0_rotates_a_normalised_stream(seed: int) -> None:
    torch.manual_seed(seed)
    module, example = ZOO["gated-tied"]()
    graph = trace(module, example)
    assert graph["embed"].symmetry is Symmetry.ORTHOGONAL  # gains are all one: rotations are admissible
    assert check(graph, module, example, seed=seed).error < 1e-6
    shake(module)
    assert trace(module, example)["embed"].symmetry is Symmetry.PERMUTATION


BROKEN = {
    "convolution": "resnet20-batch",
    "native_batch_norm": "vgg11-batch-norm",
    "native_group_norm": "mixed-convolutions",
    "native_layer_norm": "vit",
    "add": "resnet20-none",
    "mul": "gated-tied",
    "addmm": "mlp",
    "cat": "mixed-convolutions",
    "split": "hf-gpt2",
    "view": "vgg11",
    "embedding": "hf-bert",
    "bmm": "decoder",
    "_scaled_dot_product_flash_attention_for_cpu": "vit",
}


@pytest.mark.parametrize("operation", BROKEN)
def test_step0_fails_when_a_handler_is_broken(operation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from featalign.spaces.tracing.axes import Node
    from featalign.spaces.tracing.registry import Call, Dim

    def forgetful(call: Call) -> list[tuple[Dim, ...]]:
        outs = call.out if isinstance(call.out, (tuple, list)) else [call.out]
        return [
            tuple(Dim(s, Node(s) if s > 1 else None) for s in out.shape)
            for out in outs
            if isinstance(out, torch.Tensor)
        ]

    monkeypatch.setitem(HANDLERS, operation, forgetful)
    assert faults(BROKEN[operation])


def test_check_names_the_space_that_is_wrong() -> None:
    module = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 3))
    x = torch.randn(3, 6)
    graph = trace(module, x)
    from dataclasses import replace

    wrong = replace(graph, spaces=tuple(replace(s, readers=()) if s.name == "2" else s for s in graph.spaces))
    with pytest.raises(TraceError, match="space '2'"):
        check(wrong, module, x)
    assert check(SpaceGraph(graph.spaces, graph.layers), module, x).error < 1e-6
