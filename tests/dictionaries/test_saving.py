"""Folders in sae-lens's layout: outputs equal, metadata intact, damaged files named."""

import pytest
import torch

from featalign import dictionaries as fd
from featalign.dictionaries.architectures import ARCHITECTURES
from featalign.errors import CorruptFile, DictionaryError, FolderExists

NAMES = ARCHITECTURES.names()


@pytest.fixture(scope="module")
def x():
    torch.manual_seed(0)
    return torch.relu(torch.randn(1500, 12) @ torch.randn(12, 16)) + 2


def dictionary(x, name):
    facts = {"client": "A", "space": "fc1", "hook_name": "hook_post1"}
    return fd.train(x - 3 if name == "transcoder" else x, 32, name, 3, steps=60, metadata=facts)


@pytest.mark.parametrize("name", NAMES)
def test_sae_lens_gives_equal_outputs(x, name, tmp_path):
    from sae_lens import SAE

    found = dictionary(x, name)
    found.save(tmp_path / "d")
    theirs = SAE.load_from_disk(tmp_path / "d")
    inputs = x - 3 if name == "transcoder" else x
    with torch.no_grad():
        assert torch.allclose(theirs.encode(inputs), found.encode(inputs), atol=1e-5)
        assert torch.allclose(theirs(inputs), found.decode(found.encode(inputs)), atol=1e-5)
    facts = theirs.cfg.metadata
    assert (facts.client, facts.space, facts.seed) == ("A", "fc1", 0)
    assert int(facts.sae_lens_version.split(".")[0]) >= 6


@pytest.mark.parametrize("name", NAMES)
def test_round_trip(x, name, tmp_path):
    found = dictionary(x, name)
    found.save(tmp_path / "d")
    back = fd.load(tmp_path / "d")
    assert back.architecture == name and back.quality == found.quality and back.metadata["client"] == "A"
    assert torch.equal(back.encode(x), found.encode(x))
    assert list(back.history.columns) == list(found.history.columns)
    with pytest.raises(FolderExists):
        found.save(tmp_path / "d")


def test_a_dictionary_saved_by_sae_lens_is_read(x, tmp_path):
    import sae_lens

    sae = sae_lens.TopKSAE(sae_lens.TopKSAEConfig(d_in=16, d_sae=20, k=4, apply_b_dec_to_input=False))
    with torch.no_grad():
        sae.b_dec += 1
        sae.save_model(tmp_path / "d")
        found = fd.load(tmp_path / "d")
        assert torch.allclose(found.decode(found.encode(x)), sae(x), atol=1e-4)


def test_damaged_folders_are_named(x, tmp_path):
    with pytest.raises(DictionaryError, match="nothing"):
        fd.load(tmp_path / "nothing")
    dictionary(x, "topk").save(tmp_path / "d")
    weights = tmp_path / "d" / "sae_weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(CorruptFile, match="sae_weights"):
        fd.load(tmp_path / "d")


def test_training_and_saving_do_not_import_sae_lens():
    import subprocess
    import sys

    code = (
        "import sys, torch, tempfile; from featalign import dictionaries as d; "
        "f = d.train(torch.randn(400, 8), steps=3); f.save(tempfile.mkdtemp() + '/x'); "
        "assert 'sae_lens' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_sae_lens_evaluates_a_saved_dictionary_and_agrees_on_mcc(tmp_path):
    from sae_lens import SAE
    from sae_lens.synthetic.activation_generator import ActivationGenerator
    from sae_lens.synthetic.evals import eval_sae_on_synthetic_data
    from sae_lens.synthetic.feature_dictionary import FeatureDictionary

    from featalign.bench.sae import planted
    from featalign.measure import match_scores

    truth, activations = planted(24, 8, 4000, 1.0)
    found = fd.train(activations, 32, k=2, steps=400)
    found.save(tmp_path / "d")
    features = FeatureDictionary(24, 8, initializer=None)
    features.feature_vectors.data = truth
    generator = ActivationGenerator(24, 1 / 24)
    result = eval_sae_on_synthetic_data(SAE.load_from_disk(tmp_path / "d"), features, generator, 2000, 500)
    assert result.mcc == pytest.approx(match_scores(truth, found.atoms).mcc, abs=1e-3)
    assert result.sae_l0 <= 2 and result.explained_variance > 0.5
