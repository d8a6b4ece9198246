"""Exchange with sae-lens in both directions: outputs equal, normalisation included, old and odd folders named."""

import json
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file

from featalign import dictionaries as fd
from featalign.dictionaries.architectures import ARCHITECTURES
from featalign.errors import CorruptFile, DictionaryError, NotFinite

NAMES = ("topk", "batchtopk", "relu", "jumprelu", "gated", "matryoshka", "transcoder")
INFERENCE = ("standard", "topk", "jumprelu", "gated", "transcoder")
NORMALISATIONS = ("none", "layer_norm", "constant_norm_rescale", "expected_average_only_in")
CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"


@pytest.fixture(scope="module")
def lens():
    """sae-lens, whose import takes seconds."""
    return pytest.importorskip("sae_lens")


@pytest.fixture(scope="module")
def x():
    torch.manual_seed(0)
    return torch.relu(torch.randn(600, 12) @ torch.randn(12, 16)) + 2


@pytest.fixture(scope="module")
def trained(x):
    """One dictionary per architecture."""
    facts = {"client": "A", "space": "fc1", "hook_name": "hook_post1"}
    return {name: fd.train(x - 3, 32, name, 3, steps=60, metadata=facts) for name in NAMES}


def theirs(lens, architecture, **options):
    """An SAE of sae-lens with random weights."""
    build, configure = lens.registry.get_sae_class(architecture)
    options = {"d_in": 16, "d_sae": 24, "apply_b_dec_to_input": architecture != "transcoder", **options}
    if architecture == "topk":
        options["k"] = 4
    if architecture == "transcoder":
        options["d_out"] = options["d_in"]
    torch.manual_seed(0)
    sae = build(configure(**options))
    with torch.no_grad():
        for name, value in sae.named_parameters():
            value.copy_(
                torch.rand(value.shape) * 0.2 if name in ("threshold", "r_mag") else torch.randn(value.shape) / 3
            )
    return sae


@pytest.mark.parametrize("name", NAMES)
def test_what_is_saved_here_runs_there(lens, x, trained, name, tmp_path):
    trained[name].save(tmp_path / "d")
    sae = lens.SAE.load_from_disk(tmp_path / "d")
    with torch.no_grad():
        codes = trained[name].encode(x - 3)
        assert torch.allclose(sae.encode(x - 3), codes, atol=1e-5)
        assert torch.allclose(sae(x - 3), trained[name].decode(codes), atol=1e-5)
    facts = sae.cfg.metadata
    assert (facts.client, facts.space, facts.seed) == ("A", "fc1", 0)
    assert int(facts.sae_lens_version.split(".")[0]) >= 6


@pytest.mark.filterwarnings("ignore::featalign.dictionaries.DictionaryWarning")
@pytest.mark.parametrize("normalisation", NORMALISATIONS)
@pytest.mark.parametrize("architecture", INFERENCE)
def test_what_is_saved_there_encodes_here_and_goes_back(lens, x, architecture, normalisation, tmp_path):
    sae = theirs(lens, architecture, normalize_activations=normalisation)
    sae.save_model(tmp_path / "theirs")
    found = fd.load(tmp_path / "theirs")
    found.save(tmp_path / "ours")
    back = lens.SAE.load_from_disk(tmp_path / "ours")
    for inputs in (x, x[:60].reshape(6, 10, 16)):
        with torch.no_grad():
            wanted, returned = sae.encode(inputs), sae(inputs)
            codes = found.encode(inputs)
            assert torch.allclose(codes, wanted, atol=1e-5) and float(codes.abs().max()) > 0.1
            assert torch.allclose(found.decode(codes), returned, atol=1e-5)
            assert torch.allclose(found.decode(codes.clone(), like=inputs), returned, atol=1e-5)
            assert torch.allclose(back.encode(inputs), wanted, atol=1e-5)
            assert torch.allclose(back(inputs), returned, atol=1e-5)


@pytest.mark.parametrize("architecture", ["standard", "topk", "jumprelu", "gated"])
def test_an_input_bias_that_is_not_applied_and_rescaled_codes_are_folded(lens, x, architecture, tmp_path):
    options = {"rescale_acts_by_decoder_norm": True} if architecture == "topk" else {}
    sae = theirs(lens, architecture, apply_b_dec_to_input=False, **options)
    sae.save_model(tmp_path / "d")
    found = fd.load(tmp_path / "d")
    with torch.no_grad():
        assert torch.allclose(found.encode(x), sae.encode(x), atol=1e-5)
        assert torch.allclose(found.decode(found.encode(x)), sae(x), atol=1e-5)


@pytest.mark.parametrize("architecture", INFERENCE)
def test_a_scaling_factor_in_the_folder_is_folded_as_their_trainer_does(lens, x, architecture, tmp_path):
    sae = theirs(lens, architecture, normalize_activations="expected_average_only_in")
    sae.save_model(tmp_path / "d")
    (tmp_path / "d" / "activation_scaler.json").write_text(json.dumps({"scaling_factor": 0.37}))
    sae.fold_activation_norm_scaling_factor(0.37)
    found = fd.load(tmp_path / "d")
    with torch.no_grad():
        assert torch.allclose(found.encode(x), sae.encode(x), atol=1e-5)
        assert torch.allclose(found.decode(found.encode(x)), sae(x), atol=1e-5)
    (tmp_path / "d" / "activation_scaler.json").unlink()
    with pytest.warns(fd.DictionaryWarning, match="mean norm"):
        fd.load(tmp_path / "d")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_dtypes_are_kept(lens, x, dtype, tmp_path):
    theirs(lens, "jumprelu", dtype=dtype).save_model(tmp_path / "d")
    sae, found = lens.SAE.load_from_disk(tmp_path / "d"), fd.load(tmp_path / "d")
    found.save(tmp_path / "ours")
    assert json.loads((tmp_path / "ours" / CONFIG).read_text())["dtype"] == dtype
    with torch.no_grad():
        assert found.encode(x).dtype == getattr(torch, dtype)
        assert torch.allclose(found.encode(x).double(), sae.encode(x).double(), atol=1e-5)


@pytest.mark.parametrize("normalisation", ["none", "layer_norm"])
def test_a_living_sae_is_a_basis(lens, x, normalisation):
    for architecture in INFERENCE:
        sae = theirs(lens, architecture, normalize_activations=normalisation)
        found = fd.as_basis(sae)
        assert isinstance(found, fd.Dictionary) and found.atoms.shape == (24, 16)
        with torch.no_grad():
            assert torch.allclose(found.encode(x), sae.encode(x), atol=1e-5)
            assert torch.allclose(found.decode(found.encode(x)), sae(x), atol=1e-5)
    pursuit = lens.registry.get_sae_class("matching_pursuit")
    sae = pursuit[0](pursuit[1](d_in=16, d_sae=24, normalize_activations="none"))
    found = fd.as_basis(sae)
    assert isinstance(found, fd.Basis) and found.atoms.shape == (24, 16)
    assert torch.equal(found.decode(found.encode(x)), sae(x).detach()) and not found.encode(x).requires_grad


def test_as_basis_takes_what_can_encode_and_names_what_cannot(x, trained, tmp_path):
    class Halves:
        atoms = torch.eye(16)

        def encode(self, activations):
            return activations / 2

        def decode(self, codes):
            return 2 * codes

    trained["topk"].save(tmp_path / "d")
    assert fd.as_basis(trained["topk"]) is trained["topk"]
    assert torch.equal(fd.as_basis(tmp_path / "d").atoms, trained["topk"].atoms)
    found = fd.as_basis(Halves())
    assert isinstance(found, fd.Basis) and found.name == "halves" and torch.equal(found.decode(found.encode(x)), x)
    for nonsense in (3, torch.eye(3), torch.nn.Linear(3, 3), Halves, None):
        with pytest.raises(DictionaryError, match=r"is no basis; pass .* atoms \[F, n\]$"):
            fd.as_basis(nonsense)
    with pytest.raises(DictionaryError, match="holds no dictionary"):
        fd.as_basis(str(tmp_path / "nowhere"))


def test_codes_of_normalised_dictionaries_return_to_their_own_samples(lens, x):
    found = fd.as_basis(theirs(lens, "standard", normalize_activations="layer_norm"))
    first, second = found.encode(x[:50]), found.encode(x[50:100] * 3)
    assert torch.allclose(found.decode(first), found.decode(first.clone(), like=x[:50]))
    assert torch.allclose(found.decode(second[3:5], like=3 * x[53:55]), found.decode(second)[3:5], atol=1e-5)
    with pytest.raises(DictionaryError, match="like=activations"):
        found.decode(first + 0)


def test_old_configurations_are_read_as_what_they_were_or_refused(lens, x, trained, tmp_path):
    def written(name, **changes):
        trained[name].save(tmp_path / "d", overwrite=True)
        config = json.loads((tmp_path / "d" / CONFIG).read_text())
        del config["metadata"], config["architecture"]
        config.pop("k", None)
        (tmp_path / "d" / CONFIG).write_text(json.dumps({**config, "normalize_activations": False, **changes}))
        return tmp_path / "d"

    old = {"activation_fn": "topk", "activation_fn_kwargs": {"k": 3}, "hook_point": "blocks.0"}
    found = fd.load(written("topk", **old))
    assert found.architecture == "topk" and found.k == 3 and found.metadata["hook_name"] == "blocks.0"
    assert torch.equal(found.encode(x), trained["topk"].encode(x))
    for name, architecture in (("relu", "standard"), ("jumprelu", "jumprelu"), ("gated", "gated")):
        found = fd.load(written(name, architecture=architecture, activation_fn_str="relu"))
        with torch.no_grad():
            assert torch.allclose(found.encode(x), lens.SAE.load_from_disk(tmp_path / "d").encode(x), atol=1e-5)
        assert found.architecture == name
    assert fd.load(written("relu")).architecture == "relu"  # the first versions named none
    for changes in ({"activation_fn": "tanh-relu"}, {"finetuning_scaling_factor": True}):
        with pytest.raises(DictionaryError, match="sae-lens 0"):
            fd.load(written("relu", **changes))


def spoiled(folder, tensors=None, **changes):
    """Change a saved folder: configuration entries (None removes one) and tensors."""
    config, held = json.loads((folder / CONFIG).read_text()), load_file(folder / WEIGHTS)
    config = {key: value for key, value in {**config, **changes}.items() if value is not None}
    held = {key: value for key, value in {**held, **(tensors or {})}.items() if value is not None}
    (folder / CONFIG).write_text(json.dumps(config))
    save_file(held, folder / WEIGHTS)


@pytest.mark.parametrize(
    ("error", "match", "tensors", "changes"),
    [
        (CorruptFile, "no tensor 'b_enc'", {"b_enc": None}, {}),
        (CorruptFile, "no tensor 'W_dec'", {"W_dec": None}, {}),
        (CorruptFile, r"'b_dec' is \(3,\)", {"b_dec": torch.zeros(3)}, {}),
        (CorruptFile, r"'W_dec' is \(16, 32\)", {"W_dec": torch.zeros(16, 32)}, {}),
        (CorruptFile, "one dtype", {"W_dec": torch.zeros(32, 16).half()}, {}),
        (CorruptFile, "NaN", {"b_enc": torch.full((32,), float("nan"))}, {}),
        (CorruptFile, "W_enc", {}, {"d_sae": 33}),
        (CorruptFile, "d_in", {}, {"d_in": None}),
        (CorruptFile, "names no architecture", {}, {"architecture": None}),
        (CorruptFile, "'k'", {}, {"k": None}),
        (CorruptFile, "int8", {}, {"dtype": "int8"}),
        (DictionaryError, "'temporal' is not one of", {}, {"architecture": "temporal"}),
        (
            DictionaryError,
            "normalisation 'covariance_whitening'",
            {},
            {"normalize_activations": "covariance_whitening"},
        ),
        (CorruptFile, "unexpected kind", {}, {"metadata": 3}),
        (CorruptFile, "unexpected kind", {}, {"metadata": {"sae_lens_version": "six"}}),
        (CorruptFile, "unexpected kind", {}, {"metadata": {"sae_lens_version": "6.0", "quality": {"odd": 1}}}),
        (DictionaryError, "normalisation 'magic'", {}, {"normalize_activations": "magic"}),
    ],
)
def test_folders_that_do_not_fit_are_named_when_loaded(trained, tmp_path, error, match, tensors, changes):
    trained["topk"].save(tmp_path / "d")
    spoiled(tmp_path / "d", tensors, **changes)
    with pytest.raises(error, match=match) as caught:
        fd.load(tmp_path / "d")
    assert str(tmp_path / "d") in str(caught.value) and "\n" not in str(caught.value)


def test_damaged_files_are_named(trained, tmp_path):
    with pytest.raises(DictionaryError, match="nothing"):
        fd.load(tmp_path / "nothing")
    trained["topk"].save(tmp_path / "d")
    (tmp_path / "d" / CONFIG).write_text("[1]")
    with pytest.raises(CorruptFile, match="cfg"):
        fd.load(tmp_path / "d")
    trained["topk"].save(tmp_path / "d", overwrite=True)
    (tmp_path / "d" / "activation_scaler.json").write_text("[1]")
    with pytest.raises(CorruptFile, match="activation_scaler"):
        fd.load(tmp_path / "d")
    trained["topk"].save(tmp_path / "d", overwrite=True)
    weights = tmp_path / "d" / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(CorruptFile, match="sae_weights"):
        fd.load(tmp_path / "d")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_activations_of_any_width_and_shape_are_encoded_alike(x, trained, dtype):
    x = (x - 3).to(dtype)
    for found in (*trained.values(), fd.pca(x), fd.random_dictionary(x, 20)):
        codes = found.encode(x)
        assert codes.dtype == torch.float32 and torch.equal(codes, found.encode(x.float()))
        tokens = found.encode(x.reshape(20, 30, 16))
        assert torch.allclose(tokens.flatten(0, 1), codes, atol=1e-5)
        assert found.decode(tokens).shape == (20, 30, 16)
        with pytest.raises(NotFinite, match="NaN"):
            found.encode(x / 0)


def test_theirs_evaluates_a_saved_dictionary_and_agrees_on_mcc(lens, tmp_path):
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
    result = eval_sae_on_synthetic_data(lens.SAE.load_from_disk(tmp_path / "d"), features, generator, 2000, 500)
    assert result.mcc == pytest.approx(match_scores(truth, found.atoms).mcc, abs=1e-3)
    assert result.sae_l0 <= 2 and result.explained_variance > 0.5


def test_their_trainer_runs_every_architecture_that_they_have(lens, x):
    for name in ARCHITECTURES:
        if ARCHITECTURES[name].reference(8, 1, 1.0):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = fd.train(x, 16, name, 2, steps=3, trainer="sae-lens")
            assert found.design.inference == ARCHITECTURES[name].inference
            assert found.quality.l0 >= 0
    with pytest.raises(ValueError, match="transcoder"):
        fd.train(x, 16, "transcoder", 2, steps=3, trainer="sae-lens")
