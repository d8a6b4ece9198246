"""Any named place of any transformer can be diagnosed, with dictionaries that say where they belong."""

import pytest
import torch

import featalign as fa
from featalign.clients.cohort import Cohort
from featalign.errors import ProbeError, SpaceMismatch
from featalign.spaces import resolve_site, splice
from featalign.studies.diagnose.places import chosen_spaces
from tests.compare.networks import NETWORKS, bridge, tokens

QUICK = {"steps": 30, "sweep_steps": 0, "progress": False, "seeds": (0, 1), "width": 32, "k": 4}
HOOK = "blocks.0.hook_resid_post"


@pytest.mark.parametrize("name", ["bridge", "gpt2", "bert-masked"])
def test_the_stream_and_what_blocks_compute_are_diagnosed_by_name(name, tmp_path):
    module = bridge() if name == "bridge" else NETWORKS[name]().make(0)
    inputs = tokens(150) if name in ("bridge", "hooked-transformer") else {"input_ids": tokens(150)}
    masked = name == "bert-masked"
    data, task = ((inputs, tokens(150)), "classification") if masked else (inputs, None)
    found = fa.diagnose(module, data, task, spaces=[HOOK, "blocks.1.mlp.hook_post"], **QUICK)
    assert found.layers == [HOOK, "blocks.1.mlp.hook_post"] and found.layer(HOOK)["units"] == 24
    own = found.dictionaries[HOOK]
    assert own.metadata["hook_name"] == HOOK
    if not masked:
        spliced = splice(module, HOOK, lambda a: own.decode(own.encode(a)), inputs)
        assert spliced.loss_spliced != spliced.loss
        loss = found.function(HOOK, "loss")  # on the held-out fifth of the very network that was given
        assert loss["network"] == pytest.approx(spliced.loss, rel=0.05) and loss["spliced"] != loss["network"]
    with pytest.raises(SpaceMismatch, match=r"does not fit 'blocks\.1\.hook_resid_post'"):
        fa.diagnose(module, data, task, dictionaries={"blocks.1.hook_resid_post": own}, **QUICK)


def test_a_bridge_without_names_is_diagnosed_at_its_blocks():
    found, _ = chosen_spaces(Cohort.of([bridge()], tokens(), read_only=True), ())
    ends = ("mlp.hook_post", "hook_resid_post")
    assert [space.name for space in found] == [f"blocks.{k}.{end}" for k in (0, 1) for end in ends]
    assert [space.size for space in found] == [96, 24, 96, 24]


def test_freedoms_of_heads_are_no_layers():
    for name in ("hooked-transformer", "gpt2", "llama", "bert-masked"):
        case = NETWORKS[name]()
        cohort = Cohort.of([case.make(0)], case.probe, read_only=True)
        chosen, skipped = chosen_spaces(cohort, ())
        names = [space.name for space in chosen] + [row.layer for row in skipped]
        assert len(names) == 3 and not any(part in name for name in names for part in ("heads", ".qk", ".ov"))
        with pytest.raises(SpaceMismatch) as error:
            cohort.graphs[0]["nowhere"]
        assert ".qk" not in str(error.value)


def test_unknown_places_and_networks_without_any_are_told_in_one_line():
    module = NETWORKS["gpt2"]().make(0)
    with pytest.raises(SpaceMismatch, match=r"near it: blocks\.0\.hook_resid_post") as error:
        fa.diagnose(module, tokens(60), spaces=["blocks.0.hook_resid_pots"], **QUICK)
    assert "hidden spaces: transformer.wte" in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(ProbeError, match="there is nothing to diagnose"):
        fa.diagnose(torch.nn.Linear(3, 3), torch.randn(60, 3), **QUICK)
    assert resolve_site(module, HOOK).module == "transformer.h.0"
