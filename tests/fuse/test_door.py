"""`fa.fuse` and `featalign fuse`: networks or folders in, one network out in the same layout; bad input is one line."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import featalign as fa
from featalign import storage
from featalign.cli import commands
from featalign.clients import MLPConfig, build
from featalign.clients.weights import StateOnly, read_module
from featalign.data import Metric, Task
from featalign.errors import CorruptFile, FeatalignError
from featalign.fuse import FusionResult, solve

from ..compare.networks import GPT2, hugging_face, padded

CONFIG = MLPConfig(12, (9, 6), 3, bias=True)
X = torch.randn(80, 12, generator=torch.Generator().manual_seed(0))
Y = torch.arange(80) % 3


def clients():
    return [build(CONFIG, seed) for seed in (0, 1)]


def write(folder, module, config=CONFIG):
    folder.mkdir(parents=True, exist_ok=True)
    storage.save_tensors(folder / "model.safetensors", module.state_dict())
    if config is not None:
        storage.write_json(folder / "config.json", config.to_dict())
    return folder


def same(module, other, inputs=X):
    with torch.no_grad():
        a, b = module(inputs), other(inputs)
    return torch.allclose(a, b, atol=1e-6)


def test_the_package_is_the_verb():
    assert callable(fa.fuse) and fa.fuse.solve is solve
    result = fa.fuse(clients(), X, "ot-acts")
    assert isinstance(result, FusionResult) and result.refitted and result.clients == ("A", "B")
    problem = fa.fuse.FusionProblem(fa.clients.Cohort.of(clients(), X))
    assert same(result.module, solve(problem, "ot-acts", refit=True).module)


def test_a_registered_family_comes_back_as_a_folder_that_can_be_fused_again(tmp_path):
    a, b = (write(tmp_path / name, module) for name, module in zip(("first", "second"), clients()))
    result = fa.fuse([a, str(b)], X, "zip", evaluate=(X, Y), out=tmp_path / "out", mixing=0.3)
    assert result.clients == ("first", "second") and result.mixing == pytest.approx((0.3, 0.7))
    assert set(result.scores) == {"first", "second", "fused"}
    loaded = fa.load(tmp_path / "out")
    assert same(loaded.module, result.module) and loaded.to_dict() == storage.plain(result.to_dict())
    assert loaded.name == result.name
    for mine, theirs in zip(loaded.alignments, result.alignments):
        for space, found in theirs.maps.items():
            assert torch.equal(mine.maps[space].out, found.out) and torch.equal(mine.maps[space].into, found.into)
    facts = json.loads((tmp_path / "out" / "fusion.json").read_text())
    assert facts["method"] == "zip" and facts["layout"] == "family" and facts["versions"]["torch"]
    assert storage.kind_of(tmp_path / "out") == "fusion"
    again = fa.fuse([tmp_path / "out", a], X, "ot-acts")
    assert again.module.state_dict().keys() == result.module.state_dict().keys()


@pytest.mark.parametrize("method", ["vanilla", "procrustes"])
def test_a_hugging_face_folder_comes_back_as_one(method, tmp_path):
    from transformers import AutoModelForCausalLM

    make = hugging_face("GPT2LMHeadModel", "GPT2Config", **GPT2)
    for seed in (0, 1):
        make(seed).save_pretrained(tmp_path / str(seed))
    result = fa.fuse([tmp_path / "0", tmp_path / "1"], padded(), method, out=tmp_path / "out")
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "out", local_files_only=True).eval()
    loaded = fa.load(tmp_path / "out")
    with torch.no_grad():
        wanted = result.module(**padded()).logits
        assert torch.allclose(read(**padded()).logits, wanted, atol=1e-5)
        assert torch.allclose(loaded.module(**padded()).logits, wanted, atol=1e-5)
    assert loaded.notes["cohort"] and type(loaded.module) is type(result.module)


def test_a_module_of_ones_own_is_saved_as_its_weights(tmp_path):
    pair = [nn.Sequential(nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 3)) for _ in range(2)]
    result = fa.fuse(pair, X, "ot-acts", out=tmp_path / "out")
    loaded = fa.load(tmp_path / "out").module
    assert isinstance(loaded, StateOnly)
    pair[0].load_state_dict(loaded.state_dict())
    assert same(pair[0], result.module)
    with pytest.raises(FeatalignError, match="load_state_dict"):
        loaded(X)


def test_without_a_method_the_regime_recommends_one():
    client = build(CONFIG, 0)
    result = fa.fuse([client, client], X)
    assert result.method == "ot-acts" and "permutation in 2" in result.notes["recommended"]
    assert same(result.module, client)


@pytest.mark.parametrize(("pooled", "taken"), [(0.1, "zip"), (0.5, "feature-reexpress")])
def test_without_a_method_what_ends_nearer_to_the_ensemble_is_taken(pooled, taken, monkeypatch):
    """On inputs that the tried networks were not fitted on."""
    seen = []

    def tried(problem, name, **settings):
        seen.append((name, len(problem.cohort.probe), settings["refit"]))
        return SimpleNamespace(module=name)

    def near(problem, module, inputs):
        assert len(inputs) == 25
        return pooled if module == "zip" else 0.3

    monkeypatch.setattr("featalign.fuse.recommend.spoken_for", lambda problem: ("feature-reexpress", "why"))
    monkeypatch.setattr("featalign.fuse.recommend.solve", tried)
    monkeypatch.setattr("featalign.fuse.recommend.distance", near)
    x = torch.randn(100, 12, generator=torch.Generator().manual_seed(0))
    result = fa.fuse(clients(), x, refit=True)
    assert seen == [("feature-reexpress", 75, True), ("zip", 75, True)]
    assert result.method == taken
    assert ("'zip' ends nearer to the ensemble" in result.notes["recommended"]) == (taken == "zip")


def test_the_reference_is_chosen_by_index_or_name():
    first, second = clients()
    by_name = fa.fuse([first, second], X, "ot-acts", reference="left", names=("left", "right"), mixing=(1, 0))
    assert by_name.reference == 0 and same(by_name.module, first)
    assert fa.fuse([first, second], X, "ot-acts", reference=0).reference == 0
    assert fa.fuse([first, second], X, "ot-acts").reference == 1


def test_dictionaries_are_trained_where_a_method_needs_them():
    x = torch.randn(300, 12, generator=torch.Generator().manual_seed(0))
    for method in ("feature-project", "feature-zip"):
        assert torch.isfinite(fa.fuse(clients(), x, method).module(x)).all()


def test_probes_in_files(tmp_path):
    np.save(tmp_path / "x.npy", X.numpy())
    np.savez(tmp_path / "x.npz", x=X.numpy(), labels=Y.numpy())
    storage.save_tensors(tmp_path / "x.safetensors", {"x": X})
    wanted = fa.fuse(clients(), X, "ot-acts", evaluate=(X, Y))
    for name in ("x.npy", "x.npz", "x.safetensors"):
        found = fa.fuse(clients(), tmp_path / name, "ot-acts", evaluate=tmp_path / "x.npz")
        assert same(found.module, wanted.module)
        assert found.scores["fused"] == pytest.approx(wanted.scores["fused"], abs=1e-6)


class Loud(Task):
    name, metrics = "loud", (Metric("loudness"),)

    def loss(self, outputs, targets):
        return outputs.abs().mean(1)

    def score(self, outputs, targets):
        return {"loudness": "very"}


def nan_probe():
    x = X.clone()
    x[0, 0] = float("nan")
    return x


BAD = {
    "task-for-labels": (lambda: {"task": "multi-label", "evaluate": (X, Y)}, "label"),
    "unknown-task": (lambda: {"task": "klassification"}, "unknown task.*choices"),
    "label-shape": (lambda: {"evaluate": (X, torch.zeros(80, 7, 2))}, "targets"),
    "label-count": (lambda: {"evaluate": (X, Y[:5])}, "80 inputs and 5 targets"),
    "label-names": (lambda: {"evaluate": (X, ["cat"] * 80), "task": "regression"}, "numbers|label"),
    "metric": (lambda: {"task": Loud(), "evaluate": (X, Y)}, "metric 'loudness'.*return a number"),
    "exhausted": (lambda: {"probe": iter([X])}, "read once only"),
    "empty-loader": (lambda: {"probe": DataLoader(torch.zeros(0, 12), batch_size=2)}, "no batch|empty"),
    "unknown-option": (lambda: {"kost": "distance"}, "no option 'kost', did you mean 'cost'"),
    "option-without-method": (lambda: {"method": None, "cost": "distance"}, "belongs to a method"),
    "unknown-method": (lambda: {"method": "ot-akts"}, "did you mean 'ot-acts'"),
    "not-allowed": (lambda: {"method": "procrustes"}, "not possible here: no hidden space is linear.*possible: "),
    "probe-shape": (lambda: {"probe": X[:, :5]}, "rejects the probe.*pass inputs of the shape"),
    "probe-nan": (lambda: {"probe": nan_probe()}, "NaN"),
    "probe-text": (lambda: {"probe": ["a", "b"]}, "tokenizer"),
    "probe-empty": (lambda: {"probe": X[:0]}, "empty"),
    "one-client": (lambda: {"clients": clients()[:1]}, "two or more"),
    "not-a-list": (lambda: {"clients": clients()[0]}, "pass a list"),
    "not-a-network": (lambda: {"clients": [1, 2]}, "pass modules"),
    "architectures": (
        lambda: {"clients": [build(CONFIG), build(MLPConfig(12, (9,), 3, bias=True, activation="tanh"))]},
        "one architecture and depth",
    ),
    "reference": (lambda: {"reference": "C"}, "clients: A, B"),
    "reference-index": (lambda: {"reference": 5}, "there are 2 clients"),
    "mixing": (lambda: {"mixing": (0.2, 0.2)}, "sum to one"),
    "mixing-range": (lambda: {"mixing": 1.5}, "between 0 and 1"),
    "mixing-text": (lambda: {"mixing": "half"}, "mixing"),
    "head": (lambda: {"head": "top"}, "choices"),
    "names": (lambda: {"names": ("A",)}, "one each"),
    "no-folder": (lambda: {"clients": ["nowhere/a", "nowhere/b"]}, "no file or folder 'nowhere/a'"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_with_the_remedy(name):
    given, words = BAD[name]
    arguments = {"clients": clients(), "probe": X, "method": "ot-acts", **given()}
    with pytest.raises(FeatalignError, match=words) as error:
        fa.fuse(**arguments)
    assert len(str(error.value).splitlines()) == 1


def test_tokens_beyond_the_vocabulary_and_numbers_for_a_language_model():
    make = hugging_face("GPT2LMHeadModel", "GPT2Config", **GPT2)
    pair, tokens = [make(0), make(1)], torch.randint(0, 40, (12, 7))
    tokens[-1, 3] = 77
    with pytest.raises(FeatalignError, match="to 77: use the clients' own tokenizer"):
        fa.fuse(pair, {"input_ids": tokens}, "vanilla")
    with pytest.raises(FeatalignError, match=r"rejects the probe float32 \[2, 7\]"):
        fa.fuse(pair, tokens.float(), "vanilla")


def test_folders_without_what_is_needed(tmp_path):
    module = clients()[0]
    (tmp_path / "empty").mkdir()
    bare, wide = write(tmp_path / "bare", module, None), write(tmp_path / "wide", module, MLPConfig(12, (8, 6), 3))
    unknown = write(tmp_path / "unknown", module, None)
    (unknown / "config.json").write_text('{"model": "perceptron"}')
    broken = write(tmp_path / "broken", module)
    (broken / "model.safetensors").write_bytes(b"\x00" * 40)
    odd = tmp_path / "odd"
    odd.mkdir()
    (odd / "config.json").write_text('{"architectures": ["NoSuchModel"], "model_type": "gpt2"}')
    cases = ((tmp_path / "empty", "nothing says|no weights"), (bare, "nothing says of which network"),
             (wide, "do not fit model 'mlp'"), (unknown, "choices"), (broken, "safetensors"),
             (odd, "does not have"))  # fmt: skip
    for folder, words in cases:
        with pytest.raises(FeatalignError, match=words) as error:
            read_module(folder)
        assert len(str(error.value).splitlines()) == 1, folder
    with pytest.raises(CorruptFile):
        fa.load(tmp_path / "empty")


def test_a_network_that_the_layout_cannot_hold_is_kept_on_request_only(monkeypatch):
    from featalign.clients import Cohort
    from featalign.errors import SpaceMismatch

    def refuse(module):
        raise SpaceMismatch("norms cannot hold this one; keep it in canonical form")

    found = Cohort.of(clients(), X).changed(restore=refuse)
    monkeypatch.setattr(Cohort, "of", lambda *_args, **_options: found)
    with pytest.raises(SpaceMismatch, match="canonical=True"):
        fa.fuse(clients(), X, "vanilla")
    with pytest.warns(UserWarning, match="canonical form"):
        assert "canonical" in fa.fuse(clients(), X, "vanilla", canonical=True).notes


def call(capsys, monkeypatch, *arguments):
    """Exit status, standard output and standard error of the command, in this process."""
    monkeypatch.setattr(sys, "argv", ["featalign", "fuse", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        commands.main()
    return stop.value.code, *capsys.readouterr()


def test_the_command_fuses_folders(tmp_path, capsys, monkeypatch):
    a, b = (write(tmp_path / name, module) for name, module in zip("ab", clients()))
    np.savez(tmp_path / "x.npz", x=X.numpy(), labels=Y.numpy())
    code, out, err = call(
        capsys, monkeypatch, a, b, "--probe", tmp_path / "x.npz", "--method", "ot-acts", "--option", "cost=correlation",
        "--evaluate", tmp_path / "x.npz", "--reference", "a", "--out", tmp_path / "out", "--json",
    )  # fmt: skip
    assert code == 0, err
    facts = json.loads(out)
    assert facts["options"] == {"cost": "correlation"} and facts["reference"] == 0 and set(facts["scores"])
    wanted = fa.fuse(clients(), X, "ot-acts", cost="correlation", reference=0, evaluate=(X, Y))
    assert same(fa.load(tmp_path / "out").module, wanted.module)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("--probe", "x.npz", "--method", "procrustes"), "not possible here"),
        (("--probe", "x.npz", "--method", "ot-acts", "--option", "kost=1"), "did you mean 'cost'"),
        (("--probe", "x.csv", "--method", "vanilla"), "neither a file"),
        (("--probe", "x.npz", "--task", "multi-label", "--evaluate", "x.npz"), "label"),
        (("--probe", "missing.npz"), "no file"),
        (("--probe", "short.npy", "--method", "vanilla"), "rejects the probe"),
    ],
)
def test_the_command_says_no_in_one_line(arguments, words, tmp_path, capsys, monkeypatch):
    a, b = (write(tmp_path / name, module) for name, module in zip("ab", clients()))
    np.savez(tmp_path / "x.npz", x=X.numpy(), labels=Y.numpy())
    np.save(tmp_path / "short.npy", X[:, :4].numpy())
    places = [tmp_path / text if "." in text else text for text in arguments]
    code, _, err = call(capsys, monkeypatch, a, b, *places, "--out", tmp_path / "out")
    assert code == 2 and len(err.splitlines()) == 1 and "Traceback" not in err, err
    assert words in err and not (tmp_path / "out").exists()


def test_a_probe_of_one_sample_says_nothing_of_degrees_of_freedom(recwarn):
    fa.fuse(clients(), X[:1], "ot-acts")
    assert not [str(each.message) for each in recwarn if "degrees of freedom" in str(each.message)]
