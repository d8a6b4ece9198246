"""The comparison: the feature basis finds the truth and fuses best, and the command line says so."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from featalign.errors import BadOption, SpaceMismatch, UnknownName
from featalign.toy import ToyModels
from featalign.toy_fusion.compare import ToySettings, compare
from featalign.toy_fusion.methods import METHODS, ToyProblem

FAST = {"n": 12, "m": 5, "density": 0.06, "seeds": 1, "steps": 1200, "sae_steps": 600, "progress": False}


@pytest.fixture(scope="module")
def shared():
    return compare(methods=("average", "neuron-ot", "feature-ot"), **FAST)


def test_features_beat_neurons_and_the_truth_is_found(shared) -> None:
    facts = shared.to_dict()
    loss = {name: kinds["calibrated"]["mean"] for name, kinds in facts["methods"].items()}
    assert loss["feature-ot"] < 0.6 * loss["neuron-ot"] and loss["feature-ot"] < 0.6 * loss["average"]
    assert loss["feature-ot"] < 1.5 * facts["joint"]["loss"]["mean"]
    assert facts["matching"]["feature"]["mean_abs_corr"] > facts["matching"]["neuron"]["mean_abs_corr"] + 0.2
    assert facts["matching"]["feature"]["precision"] == 1.0 and facts["matching"]["feature"]["recall"] > 0.8
    assert facts["regime"]["name"] == "rearrangement" and json.dumps(facts)


def test_fusing_a_model_with_itself_returns_it(shared) -> None:
    problem = shared.example["problem"]
    same = ToyProblem(
        problem.clients[[0, 0]], (problem.data[0],) * 2, problem.probe, (problem.dictionaries[0],) * 2, 5, 16, 2
    )
    own = problem.clients[0].loss(problem.probe).item()
    for name in ("average", "neuron-ot", "procrustes", "linear", "cca", "pca-basis", "feature-orthogonal"):
        fused = METHODS[name](same)
        assert torch.allclose(fused.encoder, problem.clients.encoder[:1], atol=1e-3), name
    assert METHODS["feature-ot"](same).loss(problem.probe).item() < 1.2 * own


def test_a_permuted_copy_is_undone_by_neuron_transport(shared) -> None:
    problem = shared.example["problem"]
    order = torch.tensor([3, 0, 4, 1, 2])
    model = problem.clients[0]
    copy = ToyModels.tied(model.encoder[:, order], model.bias, model.config)
    pair = ToyProblem(ToyModels.stack([model, copy]), problem.data, problem.probe, problem.dictionaries, 5, 16, 2)
    assert torch.allclose(METHODS["neuron-ot"](pair).encoder, model.encoder, atol=1e-6)


def test_union_keeps_what_only_one_client_knows() -> None:
    result = compare(**{**FAST, "n": 12, "m": 4, "shared": 4}, methods=("average", "feature-ot", "union"))
    loss = {name: kinds["calibrated"][0] for name, kinds in result.losses.items()}
    assert loss["union"] < min(loss["average"], loss["feature-ot"], *result.single[0])
    assert result.regimes[0]["name"] == "missing-features" and result.regimes[0]["recommended"] == "union"


def test_bad_settings_are_named(shared) -> None:
    for options, message in (
        ({"clients": 1}, "2 clients"),
        ({"data": "images"}, "features, words"),
        ({"shared": 3, "n": 24}, "evenly"),
        ({"density": 0.0}, "probability"),
    ):
        with pytest.raises(BadOption, match=message):
            ToySettings(**options)
    with pytest.raises(UnknownName, match="choices"):
        ToySettings(methods=("feature-to",))
    wide = shared.example["problem"]
    with pytest.raises(SpaceMismatch, match="union"):
        METHODS["average"](ToyProblem(wide.clients, wide.data, wide.probe, wide.dictionaries, 7, 16, 2))


def test_command_line_prints_the_documented_keys(tmp_path) -> None:
    from featalign.cli import app

    command = ["toy", "compare", "-n", "8", "-m", "4", "--seeds", "1", "--method", "average", "--method", "feature-ot"]
    done = CliRunner().invoke(app, [*command, "--json", "--figure", str(tmp_path / "toy.html")])
    facts = json.loads(done.stdout)
    assert facts["joint"]["loss"]["mean"] > 0 and facts["methods"]["feature-ot"]["raw"]["mean"] > 0
    assert (tmp_path / "toy.html").stat().st_size > 1000


def test_sizes_follow_the_data() -> None:
    assert (ToySettings().n, ToySettings().m) == (24, 8)
    words = ToySettings(data="words", m=64)
    assert (words.n, words.m) == (256, 64)
