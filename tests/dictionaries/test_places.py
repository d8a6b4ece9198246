"""A dictionary trained at a hook is spliced there by sae-lens, with the very loss that is found here."""

import contextlib
import io
import warnings
from types import SimpleNamespace

import pytest
import torch

from featalign import dictionaries as fd
from featalign.errors import DictionaryError, ProbeError, SpaceMismatch
from featalign.spaces import ActivationStore, check_hook, collect, resolve_site, splice
from featalign.spaces.naming import provenance
from tests.compare.networks import NETWORKS, hooked, tokens


@pytest.fixture(scope="module")
def lens():
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        import sae_lens

        model = hooked()
        twin = sae_lens.HookedSAETransformer(model.cfg)
        twin.load_state_dict(model.state_dict())
    return sae_lens, model, twin.eval()


@pytest.mark.parametrize("architecture", ["topk", "jumprelu", "batchtopk"])
@pytest.mark.parametrize("hook", ["blocks.0.hook_resid_post", "blocks.1.mlp.hook_post", "blocks.1.attn.hook_z"])
def test_what_is_saved_here_is_spliced_there_with_the_same_loss(lens, hook, architecture, tmp_path):
    sae_lens, model, twin = lens
    ids = tokens(60)
    site = resolve_site(model, hook)
    facts = provenance(model, hook, ids)
    found = fd.train(collect(model, ids, [site])[site], 32, architecture, 4, steps=20, metadata=facts)
    found.save(tmp_path / "d")
    sae = sae_lens.SAE.load_from_disk(tmp_path / "d")
    sae.use_error_term = False
    assert sae.cfg.metadata.hook_name == hook and sae.cfg.metadata.context_size == 7
    assert sae.cfg.metadata.hook_layer == int(hook[7]) and sae.cfg.metadata.prepend_bos is False
    with torch.no_grad():
        theirs = float(twin.run_with_saes(ids, saes=[sae], return_type="loss"))
    ours = splice(model, hook, lambda a: found.decode(found.encode(a)), ids)
    assert ours.loss_spliced == pytest.approx(theirs, abs=1e-5) and abs(ours.loss_spliced - ours.loss) > 1e-4
    again = fd.load(tmp_path / "d")
    assert again.metadata["hook_name"] == hook and again.metadata["model_name"] == model.cfg.model_name


def test_a_dictionary_of_a_store_knows_its_place_and_is_refused_elsewhere(tmp_path):
    module = NETWORKS["gpt2"]().make(0)
    store = ActivationStore.build(module, {"input_ids": tokens(60)}, "transformer.h.0", tmp_path / "s", progress=False)
    found = fd.train(store, 32, k=4, steps=3)
    assert found.metadata["hook_name"] == "blocks.0.hook_resid_post" and found.metadata["hook_layer"] == 0
    check_hook(module, "blocks.0.hook_resid_post", found.metadata, 24, 24)
    with pytest.raises(SpaceMismatch, match=r"does not fit 'blocks\.1\.hook_resid_post'"):
        check_hook(module, "blocks.1.hook_resid_post", found.metadata, 24, 24)


def test_masks_that_leave_nothing_are_told_in_one_line():
    import featalign as fa

    module = NETWORKS["gpt2"]().make(0)
    nothing = {"input_ids": tokens(50), "attention_mask": torch.zeros(50, 7, dtype=torch.long)}
    with pytest.raises(ProbeError, match="attention_mask leaves no token") as error:
        splice(module, "blocks.0.hook_resid_post", lambda rows: rows, nothing)
    assert "\n" not in str(error.value)
    with pytest.raises(ProbeError, match="attention_mask leaves no token"):
        fa.diagnose(module, nothing, spaces=["blocks.0.hook_resid_post"], progress=False)


def test_a_living_sae_of_unknown_normalisation_is_refused_in_one_line():
    class Odd:
        W_dec = torch.eye(4)
        cfg = SimpleNamespace(
            to_dict=lambda: {
                "architecture": "standard", "d_in": 4, "d_sae": 4, "dtype": "float32", "normalize_activations": "magic",
                "sae_lens_version": "6.20.0",
            }
        )  # fmt: skip

        def state_dict(self):
            square = torch.eye(4)
            return {"W_enc": square, "W_dec": square, "b_enc": torch.zeros(4), "b_dec": torch.zeros(4)}

        encode = decode = lambda self, x: x

    with pytest.raises(DictionaryError, match="normalisation 'magic' is not one of") as error:
        fd.as_basis(Odd())
    assert "\n" not in str(error.value)


def test_stores_are_matched_like_the_rows_that_they_hold(tmp_path):
    import featalign as fa

    x = torch.randn(500, 8, generator=torch.Generator().manual_seed(0)).relu()
    module = torch.nn.Sequential(torch.nn.Identity(), torch.nn.Linear(8, 2))
    store = ActivationStore.build(module, x, "0", tmp_path / "s", dtype="float32", progress=False)
    bases = [fd.train(x, 16, k=3, steps=40, seed=seed) for seed in (0, 1)]
    ours, theirs = (fa.match(*bases, inputs=rows, progress=False) for rows in (store, x))
    assert ours.frames["pairs"]["score"].tolist() == pytest.approx(theirs.frames["pairs"]["score"].tolist(), abs=1e-6)
