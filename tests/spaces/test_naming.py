"""Names of places: hook names stand for the same tensors on every framework, and unknown ones are told in one line."""

import pytest
import torch
from torch import nn

from featalign.data.inputs import Inputs
from featalign.errors import SpaceMismatch
from featalign.spaces import Site, check_hook, collect, hook_name_of, resolve_site, same_place, sites, splice
from featalign.spaces.layouts import hooks_of
from featalign.spaces.naming import units_of_site
from tests.compare.networks import NETWORKS, bridge, hooked, tokens

from .zoo import ZOO

TRANSFORMERS = ["hooked-transformer", "gpt2", "gpt2-labels", "llama", "bert-labels", "bert-masked", "vit"]


def network(name):
    if name == "bridge":
        return bridge(), Inputs.of(tokens()).example()
    if name == "own-vit":
        module, probe = ZOO["vit"]()
        return module.eval(), Inputs.of(probe).example()
    case = NETWORKS[name]()
    return case.make(0), Inputs.of(case.probe).example()


@pytest.mark.parametrize("name", [*TRANSFORMERS, "bridge", "own-vit"])
def test_every_listed_name_is_read_has_its_width_and_is_found_again(name):
    module, batch = network(name)
    for hook in hooks_of(module).values():
        rows = [collect(module, [batch], [site])[site] for site in hook.sites]
        assert all(torch.allclose(rows[0], other, atol=1e-5) for other in rows[1:]), hook.name
        assert rows[0].shape[1] == hook.units == units_of_site(module, hook.name)
        assert hook_name_of(module, hook.name) == hook.name
    frame = sites(module)
    for k in range(2):  # the stream at every depth, and what the feed-forward layer computes
        for last in ("hook_resid_pre", "hook_resid_mid", "hook_resid_post", "mlp.hook_post", "attn.hook_z"):
            assert f"blocks.{k}.{last}" in set(frame.name)
    assert frame.units.notna().all()


def test_hook_names_stand_for_the_same_tensors_in_a_bridge_and_in_the_network_that_it_wraps():
    wrapped = NETWORKS["gpt2"]().make(0)
    bridged, ids = bridge(0), tokens()
    names = [name for name in hooks_of(wrapped) if name in hooks_of(bridged)]
    assert len(names) >= 20 and "blocks.1.attn.hook_k" in names
    for name in names:
        a, b = resolve_site(wrapped, name), resolve_site(bridged, name)
        rows = collect(wrapped, ids, [a])[a]
        assert torch.allclose(rows, collect(bridged, ids, [b])[b], atol=1e-4), name


def test_the_stream_leaves_a_block_as_it_enters_the_next():
    for name in ("hooked-transformer", "gpt2", "bert-masked"):
        module, batch = network(name)
        a, b = (resolve_site(module, f"blocks.{k}.hook_resid_{end}") for k, end in ((0, "post"), (1, "pre")))
        assert torch.equal(collect(module, [batch], [a])[a], collect(module, [batch], [b])[b])
        assert same_place(module, a, b) or name == "hooked-transformer"
        assert not same_place(module, "blocks.0.hook_resid_post", "blocks.1.hook_resid_post")


@pytest.mark.parametrize("name", ["hooked-transformer", "bridge", "gpt2"])
@pytest.mark.parametrize("hook", ["blocks.1.attn.hook_z", "blocks.0.hook_resid_mid", "blocks.0.mlp.hook_post"])
def test_splicing_the_identity_at_a_hook_name_loses_nothing_and_the_mean_something(name, hook):
    module, batch = network(name)
    found = splice(module, hook, lambda rows: rows, Inputs.of({"input_ids": batch.tokens}))
    assert found.loss_spliced == pytest.approx(found.loss, rel=1e-5) and found.loss_ablated != found.loss


def test_heads_are_taken_together_as_sae_lens_does():
    model = hooked()
    site = resolve_site(model, "blocks.0.attn.hook_z")
    _, cache = model.run_with_cache(tokens(3))
    assert torch.allclose(
        collect(model, tokens(3), [site])[site], cache["blocks.0.attn.hook_z"].flatten(2).flatten(0, 1)
    )


def test_module_paths_and_sides_are_sites_of_any_network():
    module = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    assert resolve_site(module, "0") == Site("0") and resolve_site(module, "2:in") == Site("2", "in")
    assert hook_name_of(module, Site("2", "in")) == "2:in" and hook_name_of(module, "1") == "1"
    assert sites(module).units.tolist() == [5, 3]
    assert dict(zip(*(sites(module, torch.randn(4, 6))[key] for key in ("name", "units")))) == {"0": 5, "1": 5, "2": 3}
    with pytest.raises(SpaceMismatch, match="example"):
        units_of_site(module, "1")
    assert units_of_site(module, "1", torch.randn(4, 6)) == 5


@pytest.mark.parametrize(
    ("name", "wrong", "match"),
    [
        ("gpt2", "blocks.0.hook_resid_pots", r"no site .* near it: .*blocks\.0\.hook_resid_post"),
        ("hooked-transformer", "blocks.9.mlp.hook_post", r"near it: .*blocks\.[01]\.mlp\.hook_post"),
        ("bridge", "block.0.hook_mlp_out", r"near it: .*blocks\.0\.hook_mlp_out"),
        ("hooked-transformer", "blocks.0.attn.hook_pattern", "holds no units"),
        ("gpt2", "ln_final.hook_normalized", r"near it: ln_final\.hook_out"),
        ("gpt2", "transformer.h.0:middle", "':in' or ':out'"),
        ("gpt2", "", "no site ''"),
    ],
)
def test_unknown_names_are_told_in_one_line_with_the_nearest(name, wrong, match):
    module, _ = network(name)
    with pytest.raises(SpaceMismatch, match=match) as error:
        resolve_site(module, wrong)
    assert "\n" not in str(error.value)


def test_a_dictionary_of_another_hook_or_width_is_refused():
    module = NETWORKS["gpt2"]().make(0)
    check_hook(module, "blocks.0.mlp.hook_post", {"hook_name": "transformer.h.0.mlp.act:out"}, 96, 96)
    check_hook(module, "blocks.0.hook_resid_post", {"hook_name": "blocks.1.hook_resid_pre"}, 24, 24)
    check_hook(module, "blocks.0.hook_resid_post", {}, 24, 24)
    for hook, units, match in (
        ("blocks.1.hook_resid_post", 24, "'blocks.1.hook_resid_post' does not fit 'blocks.0.hook_resid_post'"),
        ("blocks.0.hook_resid_post", 96, "of 96 units does not fit 'blocks.0.hook_resid_post', which has 24"),
        ("blocks.7.hook_resid_post", 24, "does not fit a GPT2LMHeadModel"),
    ):
        with pytest.raises(SpaceMismatch, match=match) as error:
            check_hook(module, "blocks.0.hook_resid_post", {"hook_name": hook}, units, 24)
        assert "\n" not in str(error.value)
