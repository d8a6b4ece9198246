"""The toy study: the feature basis finds the truth and fuses best; frames, files, page and command line say so."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

import featalign as fa
from featalign.errors import BadOption, UnknownName
from featalign.fuse import METHODS
from featalign.studies.toy import ToySettings, compare

pytestmark = pytest.mark.long

FAST = {"n": 12, "m": 5, "density": 0.06, "seeds": 1, "steps": 1000, "sae_steps": 500, "progress": False}


@pytest.fixture(scope="module")
def shared():
    return compare(methods=("vanilla", "ot-acts", "feature-reencode"), **FAST)


def test_features_beat_neurons_and_the_truth_is_found(shared) -> None:
    loss = {name: shared.loss(name) for name in ("vanilla", "ot-acts", "feature-reencode")}
    assert loss["feature-reencode"] < 0.6 * loss["ot-acts"] and loss["feature-reencode"] < 0.6 * loss["vanilla"]
    assert loss["feature-reencode"] < 1.5 * shared.joint and shared.winner == "feature-reencode"
    found = shared.frames["matching"].iloc[0]
    assert found["feature"] > found["neuron"] + 0.2 and found["precision"] == 1.0 and found["recall"] > 0.8
    assert shared.verdict["name"] == "rearrangement" and shared.verdict["recommended"] in METHODS


def test_scores_are_those_of_the_task(shared) -> None:
    problem, fused = shared.example["problem"], shared.example["fused"]["feature-reencode"]
    x = problem.cohort.own[0].tensor
    models = fa.toy.ToyModels.of([fused])
    scored = fa.clients.evaluate(fused, x, fa.toy.Reconstruction())
    assert scored["loss"] == pytest.approx(float(models.loss(x)), rel=1e-5)


def test_a_saved_result_comes_back_with_its_page(shared, tmp_path) -> None:
    folder = shared.save(tmp_path / "run")
    again = fa.studies.load(folder)
    assert again.config == shared.config and again.to_frame().equals(shared.to_frame())
    assert "feature-reencode" in (folder / "report.html").read_text(encoding="utf-8")
    assert set(shared.figures) == {"losses", "survival"} and "(joint training)" in repr(shared)


def test_union_keeps_what_only_one_client_knows_at_any_width() -> None:
    settings = ToySettings(**{k: v for k, v in FAST.items() if k != "progress"})
    names = ("vanilla", "feature-reencode", "feature-union")
    result = compare(settings, m=4, shared=4, methods=names, progress=False)
    assert result.loss("feature-union") < min(result.loss("vanilla"), result.loss("feature-reencode"), result.single)
    assert result.verdict["name"] == "missing-features" and result.verdict["recommended"] == "feature-union"
    wider = compare(settings, m=4, shared=4, width=6, progress=False)
    left_out = wider.frames["methods"].set_index("method")["reason"]
    assert wider.example["fused"]["feature-union"].encoder.out_features == 6 and "4 units" in left_out["vanilla"]
    assert wider.loss("feature-union") < result.loss("feature-union")


def test_a_nonlinearity_leaves_rotations_out_and_says_why() -> None:
    result = compare(hidden="relu", methods=(), **{**FAST, "steps": 200, "sae_steps": 200})
    methods = result.frames["methods"].set_index("method")
    assert not methods["available"]["procrustes"] and "rotation" in methods["reason"]["procrustes"]
    assert methods["available"]["feature-reencode"] and methods["available"]["ot-acts"]
    assert torch.isfinite(torch.tensor(result.frames["scores"]["value"].to_numpy())).all()


def test_bad_settings_are_named() -> None:
    for options, message in (
        ({"clients": 1}, "2 clients"),
        ({"data": "images"}, "features"),
        ({"shared": 3, "n": 24}, "evenly"),
        ({"shared": 30}, "between 0 and 24"),
        ({"density": 0.0}, "probability"),
        ({"width": 4}, "at least 8"),
    ):
        with pytest.raises(BadOption, match=message):
            ToySettings(**options)
    with pytest.raises(UnknownName, match="choices"):
        compare(methods=("feature-to",), **FAST)
    with pytest.raises(BadOption, match="no option 'centre'"):
        compare(options={"procrustes": {"centre": True}}, **FAST)
    with pytest.raises(BadOption, match="keeps the clients' 5 units"):
        compare(methods=("vanilla",), width=7, **{**FAST, "steps": 20, "sae_steps": 20})


def test_command_line_prints_and_writes_what_is_documented(tmp_path) -> None:
    from featalign.cli import app

    command = ["toy", "compare", "-n", "8", "-m", "4", "--seeds", "1", "--steps", "200", "--method", "vanilla"]
    done = CliRunner().invoke(app, [*command, "--json", "--out", str(tmp_path / "toy")])
    facts = json.loads(done.stdout)
    assert facts["study"] == "toy" and {row["stage"] for row in facts["frames"]["scores"]} >= {"raw", "joint", "client"}
    assert (tmp_path / "toy" / "report.html").stat().st_size > 1000


def test_sizes_follow_the_data() -> None:
    assert (ToySettings().n, ToySettings().m) == (24, 8)
    words = ToySettings(data="words", m=64)
    assert (words.n, words.m) == (256, 64)


def test_a_sweep_says_how_often_the_regime_was_right() -> None:
    from featalign.studies.toy import sweep
    from featalign.studies.toy.sweep import OWN_FEATURES

    common = ToySettings(n=12, m=4, density=0.06, seeds=1, steps=800, sae_steps=500, methods=OWN_FEATURES)
    frame = sweep([common], progress=False).to_frame()
    assert frame["outcome"].tolist() == ["wins"] and frame["agrees"].tolist() == [True]
    assert set(frame["recommended"]) <= set(METHODS.names())


def test_curves_are_frames_with_a_figure() -> None:
    import pandas as pd

    from featalign.plots.toy import words_curve
    from featalign.studies.toy import CURVES, capacity_curve, explained_curve

    curve = explained_curve(n=8, widths=(2, 8), pairs=2)
    linear = curve.to_frame().query("start == 'independent'").groupby("m")["value"].mean()
    assert linear[2] < 0.7 < linear[8] and json.dumps(curve.to_dict())
    assert len(curve.figure.data) == 3 and set(CURVES.names()) == {"explained", "capacity", "words"}
    base = ToySettings(n=8, m=2, shared=4, density=0.1, seeds=1, steps=200, sae_steps=200)
    capacity = capacity_curve(base, widths=(2, 4))
    assert capacity.to_frame()["union"].is_monotonic_decreasing and len(capacity.figure.data) == 2
    rows = [(16, "vanilla", 1.0, 2.0, "rearrangement"), (16, "one client", 0.5, 1.0, "rearrangement")]
    assert len(words_curve(pd.DataFrame(rows, columns=["m", "method", "loss", "times client", "regime"])).data) == 2
