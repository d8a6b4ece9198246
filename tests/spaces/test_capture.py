"""Capture: batches bounded by what they weigh, all calls of a layer, padded tokens left out, types and names."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from featalign.data import Inputs
from featalign.errors import NotFinite, ProbeError, SpaceMismatch
from featalign.spaces import CrossMoments, Site, collect, stream, trace
from featalign.spaces.capture import BATCH_BYTES, fitting_batch, kept
from tests.spaces.zoo import ZOO, Loop, shake


def test_batches_shrink_as_activations_grow() -> None:
    small, large = nn.Sequential(nn.Linear(4, 8)), nn.Sequential(nn.Conv2d(3, 64, 3, padding=1))
    site = Site("0", "out")
    assert fitting_batch(small, torch.randn(10, 4), [site]) == 2048
    size = fitting_batch(large, torch.randn(4, 3, 64, 64), [site])
    assert 1 <= size < 2048 and size * 64 * 64 * 64 * 4 <= BATCH_BYTES


def test_moments_do_not_depend_on_the_batch() -> None:
    torch.manual_seed(0)
    a, b, probe, site = nn.Sequential(nn.Linear(4, 8)), nn.Sequential(nn.Linear(4, 8)), torch.randn(100, 4), Site("0")
    found = []
    for size in (7, 100):
        moments = CrossMoments()
        for (_, left), (_, right) in zip(stream(a, probe, [site], size), stream(b, probe, [site], size)):
            moments.update(left[site], right[site])
        found.append(moments.squared_distances)
    assert torch.allclose(*found, atol=1e-9)


def test_batches_are_those_of_the_inputs() -> None:
    module, site = nn.Sequential(nn.Linear(4, 8)), Site("0")
    inputs = Inputs.of(torch.randn(8, 4)).batched(3)
    assert [len(outputs) for outputs, _ in stream(module, inputs, [site])] == [3, 3, 2]
    assert [len(outputs) for outputs, _ in stream(module, inputs, [site], 5)] == [5, 3]
    assert torch.allclose(collect(module, inputs, [site])[site], module(inputs.example(8).args[0]), atol=1e-6)


def test_a_layer_that_runs_several_times_gives_all_its_calls() -> None:
    torch.manual_seed(0)
    module, x = Loop(), torch.randn(6, 5)
    graph = trace(module, x)
    space = graph["read"]
    assert (space.pre, space.post) == (Site("again"), Site("act"))
    assert {layer.module: layer.calls for layer in graph.layers} == {"read": 1, "again": 3, "write": 1}
    assert any("'again' runs 3 times" in note for note in graph.notes)
    held = collect(module, x, [space.before, space.after, Site("again", "in")])
    pre, post = held[space.before], held[space.after]
    assert pre.shape == (18, 8) and torch.equal(pre.relu(), post)
    assert torch.equal(held[Site("again", "in")][6:], post[:12])  # call by call, each on the result of the one before


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_activations_are_single_or_double_precision(dtype: torch.dtype) -> None:
    module, x = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 2)).to(dtype), torch.randn(20, 4)
    graph = trace(module, x)
    held = collect(module, x, [graph["0"].before, graph["0"].after])
    assert {t.dtype for t in held.values()} == {torch.float64 if dtype is torch.float64 else torch.float32}
    moments = CrossMoments().update(*held.values())
    assert moments.covariance_ab.dtype is torch.float64 and moments.covariance_ab.isfinite().all()


def test_padded_tokens_are_left_out() -> None:
    torch.manual_seed(0)
    module, _ = ZOO["hf-bert"]()
    ids, mask = torch.randint(0, 40, (3, 6)), torch.ones(3, 6, dtype=torch.long)
    mask[0, 4:] = mask[2, 1:] = 0
    site = Site("bert.encoder.layer.0.intermediate.dense")
    batch = {"input_ids": ids, "attention_mask": mask}
    outputs, held = next(stream(module, batch, [site]))
    assert outputs.shape == (3, 2) and held[site].shape == (11, 40)
    alone = {"input_ids": ids[2:, :1], "attention_mask": mask[2:, :1]}
    assert torch.allclose(held[site][-1], collect(module, alone, [site])[site][0], atol=1e-4)
    assert kept(torch.randn(3, 6, 4), mask.bool()).shape == (11, 1, 4)


def test_what_cannot_be_read_is_named() -> None:
    module = nn.ModuleDict({"fc1": nn.Linear(4, 4), "fc2": nn.Linear(4, 4)})
    module.forward = lambda x: module["fc1"](x)
    with pytest.raises(SpaceMismatch, match=r"no submodule 'fc_1'.*fc1"):
        collect(module, torch.randn(3, 4), [Site("fc_1")])
    with pytest.raises(SpaceMismatch, match="nothing is seen at 'fc2:out'"):
        collect(module, torch.randn(3, 4), [Site("fc2")])
    with pytest.raises(NotFinite, match="'fc1:out'"):
        collect(module, torch.full((3, 4), float("inf")), [Site("fc1")])
    with pytest.raises(ProbeError):
        collect(module, torch.randn(0, 4), [Site("fc1")])
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())


def test_attention_whose_projections_are_functional_says_so() -> None:
    module, example = ZOO["gated-tied"]()
    graph = trace(shake(module), example)
    assert [layer.module for layer in graph.layers if layer.calls == 0] == ["attention.out_proj"]
    assert any("'attention.out_proj' never runs by itself" in note for note in graph.notes)
    with pytest.raises(SpaceMismatch, match=r"'attention.heads' .* is seen at no module"):
        graph["attention.heads"].before


def test_unpaired_sites_are_marked_and_come_last() -> None:
    module, example = ZOO["mixer"]()
    graph = trace(shake(module), example)
    assert graph["channels_in"].before.paired and graph["embed"].after.paired
    assert not graph["tokens_in"].before.paired
    vit, pictures = ZOO["vit"]()
    heads = [space for space in trace(shake(vit), pictures).hidden if space.name.endswith("heads")]
    assert heads and not any(space.before.paired for space in heads)
    assert [str(site) for site in graph["embed"].whole_sites] == [
        "embed:out", "norm1:out", "tokens_out:out", "norm2:out", "channels_out:out",
    ]  # fmt: skip


class SharedActivation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.act = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2), nn.Tanh()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c(self.act(self.b(self.act(self.a(x)))))


def test_a_module_shared_by_several_spaces_is_a_site_of_none() -> None:
    module, x = SharedActivation(), torch.randn(6, 4)
    graph = trace(module, x)
    for space, reader in ((graph["a"], "b"), (graph["b"], "c")):
        assert (space.before, space.after) == (Site(space.name), Site(reader, "in"))
        held = collect(module, x, [space.before, space.after])
        assert torch.equal(held[space.before].tanh(), held[space.after]) and len(held[space.after]) == 6
    assert not any(site.module == "act" for space in graph.spaces for site in space.sites)
