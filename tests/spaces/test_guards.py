"""What cannot be traced or checked is refused in one line that blames the right thing; what can be is not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from featalign.errors import TraceError
from featalign.spaces import Symmetry, check, collect, trace, weakest
from featalign.spaces.check import output_change
from tests.spaces.zoo import ZOO, shake


@dataclass
class Out:
    logits: torch.Tensor
    hidden: Any = None


class Slots:
    __slots__ = ("logits",)

    def __init__(self, logits: torch.Tensor):
        self.logits = logits


def model_output(logits: torch.Tensor) -> Any:
    from transformers.modeling_outputs import SequenceClassifierOutput

    return SequenceClassifierOutput(logits=logits)


class Wrapped(nn.Module):
    def __init__(
        self, wrap: Callable[[torch.Tensor], Any], noise: Callable[[torch.Tensor], torch.Tensor] | None = None
    ):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 8), nn.Linear(8, 7), nn.Linear(7, 3)
        self.wrap, self.noise = wrap, noise

    def forward(self, x: torch.Tensor) -> Any:
        hidden = self.a(x).relu()
        hidden = hidden if self.noise is None else self.noise(hidden)
        return self.wrap(self.c(self.b(hidden).tanh()))


WRAPS: dict[str, Callable[[torch.Tensor], Any]] = {
    "dataclass": Out,
    "nested": lambda y: (None, {"out": [Out(y, SimpleNamespace(extra=2 * y))]}),
    "namespace": lambda y: SimpleNamespace(logits=y),
    "slots": Slots,
    "model-output": model_output,
    "distribution": lambda y: torch.distributions.Categorical(logits=y, validate_args=False),
    "set": lambda y: {y},
}


@pytest.mark.parametrize("name", WRAPS)
def test_outputs_are_found_wherever_they_are(name: str) -> None:
    module, x = Wrapped(WRAPS[name]), torch.randn(4, 5)
    graph = trace(module, x)
    assert graph["c"].pinned and [space.name for space in graph.hidden] == ["a", "b"]
    assert check(graph, module, x).error < 1e-6


@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        (lambda y: (part for part in y), "returns a generator"),
        (lambda y: map(abs, y), "returns a map"),
        (lambda y: {"logits": y.detach().numpy()}, "returns a ndarray"),
        (lambda y: torch.from_numpy(y.numpy().copy()), "no output of the module was computed"),
        (lambda y: None, "no tensor was found"),
        (lambda y: SimpleNamespace(loss=1.0), "no tensor was found"),
    ],
)
def test_outputs_that_cannot_be_followed_are_refused(wrap: Callable[[torch.Tensor], Any], message: str) -> None:
    with pytest.raises(TraceError, match=message) as caught:
        trace(Wrapped(wrap), torch.randn(4, 5))
    assert "\n" not in str(caught.value)


class Seeded(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.randn(x.shape[-1], generator=torch.Generator().manual_seed(0)).to(x)


@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize("noise", [lambda h: nn.functional.dropout(h, 0.5, True), lambda h: h * torch.rand(h.shape)])
def test_random_forward_is_blamed_and_not_a_space(noise: Callable[[torch.Tensor], torch.Tensor], partial: bool) -> None:
    torch.manual_seed(0)
    module, x = nn.Sequential(nn.Linear(5, 5), Wrapped(lambda y: y, noise)), torch.randn(40, 5)
    module[1].a = nn.Linear(5, 8)
    if partial:
        graph = trace(module, x, partial=True)
        assert any("draws random numbers" in warning for warning in graph.warnings)
    else:
        with pytest.raises(TraceError, match=r"'1' draws random numbers"):
            trace(module, x)
        graph = trace(nn.Sequential(module[0], Wrapped(lambda y: y)), x)
    with pytest.raises(TraceError, match=r"'1' draws random numbers"):
        check(graph, module, x)


def test_seeded_noise_is_no_randomness() -> None:
    module, x = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6), Seeded(), nn.Linear(6, 3)), torch.randn(4, 5)
    assert check(trace(module, x), module, x).error < 1e-6


def test_modules_without_numbers() -> None:
    x = torch.randn(3, 5)
    with torch.device("meta"):
        nowhere = nn.Linear(5, 2)
    graph = trace(nn.Linear(5, 2), x)
    for module, message in (
        (nn.Sequential(nn.ReLU(), nn.Flatten()), "without floating-point parameters"),
        (nowhere, "'weight' is on the meta device"),
        (nn.LazyLinear(3), "has no shape yet"),
    ):
        with pytest.raises(TraceError, match=message):
            trace(module, x)
        with pytest.raises(TraceError, match=message):
            check(graph, module, x)


class Refuses(nn.Linear):
    def register_forward_hook(self, *args: Any, **options: Any) -> Any:
        raise RuntimeError("no hooks here")


def test_no_hook_stays_behind() -> None:
    module, x = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), Refuses(6, 3)), torch.randn(3, 5)
    attention = torch.backends.mha.get_fastpath_enabled()
    with pytest.raises(TraceError, match="no hooks here"):
        trace(module, x)
    from featalign.spaces import Site

    with pytest.raises(RuntimeError, match="no hooks here"):
        collect(module, x, [Site("0"), Site("2")])
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())
    assert torch.backends.mha.get_fastpath_enabled() == attention


class Masked(nn.Module):
    """Attention by hand with a mask buffer of -inf, and a buffer of NaN that nobody reads."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(6, 6) for _ in range(4))
        self.register_buffer("mask", torch.full((4, 4), float("-inf")).triu(1))
        self.register_buffer("unused", torch.full((3,), float("nan")))
        self.scores = nn.Identity()

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scores = self.scores(self.q(x) @ self.k(x).transpose(1, 2) + self.mask)
        return self.o(scores.softmax(-1) @ self.v(x)), scores


def test_infinite_masks_are_no_fault() -> None:
    module, x = Masked(), torch.randn(2, 4, 6)
    graph = trace(module, x)
    assert check(graph, module, x).error < 1e-6 and not graph.warnings
    sites = [space.before for space in graph.hidden]
    assert len(sites) == 3 and all(held.isfinite().all() for held in collect(module, x, sites).values())
    a, b = torch.tensor([1.0, float("-inf"), float("nan")]), torch.tensor([1.5, float("-inf"), float("nan")])
    assert output_change([a], [b]) == pytest.approx(0.5)
    assert output_change([a], [torch.tensor([1.0, 0.0, float("nan")])]) == float("inf")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["mlp", "resnet20-batch", "vit", "hf-gpt2", "hf-llama", "dilated"])
def test_every_type_of_number(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    module, example = ZOO[name]()
    double = trace(shake(module), example)
    graph = trace(module.to(dtype), example)
    assert [(s.name, s.size, s.symmetry) for s in graph.spaces] == [(s.name, s.size, s.symmetry) for s in double.spaces]
    assert check(graph, module, example).error < 1e-5
    assert {p.dtype for p in module.parameters()} == {dtype}


def test_the_weaker_symmetry_holds_for_all() -> None:
    torch.manual_seed(0)
    (fresh, x), (trained, _) = ZOO["gated-tied"](), ZOO["gated-tied"]()
    graphs = [trace(fresh, x), trace(shake(trained), x)]
    assert [g["embed"].symmetry for g in graphs] == [Symmetry.ORTHOGONAL, Symmetry.PERMUTATION]
    agreed = weakest(graphs)
    assert [(s.name, s.symmetry) for s in agreed[0].spaces] == [(s.name, s.symmetry) for s in agreed[1].spaces]
    assert agreed[0]["embed"].symmetry is Symmetry.PERMUTATION
    for graph, module in zip(agreed, (fresh, trained)):
        assert check(graph, module, x).error < 1e-5
    other = trace(nn.Sequential(nn.Linear(4, 20), nn.ReLU(), nn.Linear(20, 2)), torch.randn(2, 4))
    assert not any(graph.hidden for graph in weakest([graphs[0], other])) and weakest([]) == []
