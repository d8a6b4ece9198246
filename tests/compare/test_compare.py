"""`compare` on a shipped data set: the run folder, its rebuild from its configuration, what the frames say."""

import subprocess
import sys

import numpy as np
import pytest
import torch

import featalign as fa
from featalign import storage
from featalign.clients import evaluate
from featalign.dictionaries import load as load_dictionary
from featalign.errors import BadOption, FeatalignError
from featalign.studies.compare.config import CompareConfig, RunConfig
from featalign.studies.compare.run import run
from tests.compare.conftest import SMALL

pytestmark = pytest.mark.long


def test_run_folder_holds_what_was_promised(finished):
    folder = finished.folder
    for name in ("config.toml", "results.json", "arrays.safetensors", "widgets.json", "report.html"):
        assert (folder / name).stat().st_size > 0
    assert RunConfig.from_toml(folder / "config.toml") == SMALL
    frames = finished.frames
    scores = frames["scores"]
    assert set(scores["seed"]) == {0, 1} and set(scores["metric"]) == {"accuracy", "loss"}
    assert scores[scores["metric"] == "accuracy"]["value"].between(0, 1).all()
    rows = {"client-A", "client-B", "ensemble", "ensemble-mean-logits", "vanilla", "ot-acts+refit", "feature-zip+refit"}
    assert rows <= set(scores["row"]) and set(scores["row"]) == set(frames["rows"]["row"])
    assert set(frames["spaces"]["space"]) == {"fc1", "fc2"} and set(frames["matches"]["basis"]) == {"neuron", "feature"}
    assert (frames["matches"]["lower_bound"] <= frames["matches"]["value"] + 1e-9).all()
    assert (frames["dictionaries"]["explained_variance"] > 0.3).all()
    assert not scores.duplicated(["seed", "row", "mixing", "metric"]).any()


def test_a_loaded_result_is_the_same(finished):
    again = fa.load(finished.folder)
    assert again.config == finished.config and repr(again) == repr(finished)
    assert again.page() == finished.page() and set(again.figures) == set(finished.figures)


def test_curves_end_at_the_clients(finished):
    """At mixing weight 0 and 1 every method that can must return a client's score, in every metric."""
    scores = finished.frames["scores"].set_index(["row", "mixing", "metric", "seed"])["value"].sort_index()
    for row in ("vanilla", "ot-acts", "ot-acts+refit", "zip+refit"):
        for metric in ("accuracy", "loss"):
            for mixing, client in ((0.0, "client-B"), (1.0, "client-A")):
                ends, own = scores[row, mixing, metric], scores[client, 0.5, metric]
                assert np.allclose(ends, own, rtol=1e-5), (row, metric)


def test_fused_models_reload_and_score_what_the_table_says(finished):
    weights = storage.load_tensors(finished.folder / "models" / "seed-1" / "zip+refit.safetensors")
    module = finished.modules(1)["vanilla"]
    module.load_state_dict(weights)
    scores = finished.headline()
    said = scores[(scores["row"] == "zip+refit") & (scores["seed"] == 1)]["value"].item()
    assert evaluate(module, finished.trials[1].scored, finished.trials[1].cohort.task)["accuracy"] == said


def test_dictionaries_reload(finished):
    trained = finished.trials[0].trained["dictionaries"]["fc1"][0]
    loaded = load_dictionary(finished.saes / "A" / "fc1")
    activations = torch.rand(20, 24)
    assert torch.allclose(loaded.encode(activations), trained.encode(activations), atol=1e-5)


def test_same_configuration_gives_same_numbers(finished, tmp_path):
    again = run(RunConfig.from_toml(finished.folder / "config.toml"), tmp_path / "again", progress=False)
    for name in ("scores", "matches", "spaces", "ledger", "features"):
        assert again.frames[name].equals(finished.frames[name]), name


def test_gains_are_within_seeds_and_follow_the_metric(finished):
    frame, loss = finished.to_frame(), finished.to_frame("loss")
    scores = finished.headline().set_index(["row", "seed"])["value"]
    best = [max(scores["client-A", seed], scores["client-B", seed]) for seed in (0, 1)]
    expected = np.mean([scores["zip+refit", seed] - best[seed] for seed in (0, 1)])
    assert frame.loc["zip+refit", "to_best_client"] == pytest.approx(expected)
    assert frame.loc["ensemble", "to_ensemble"] == 0 and loss.loc["ensemble", "to_ensemble"] == 0
    worse = loss["loss"] > loss.loc["ensemble", "loss"]
    assert (loss[worse]["to_ensemble"] < 0).all()
    assert frame[frame["kind"] == "client"]["accuracy"].is_monotonic_decreasing
    assert loss[loss["kind"] == "client"]["loss"].is_monotonic_increasing


def test_existing_and_impossible_folders_are_refused_before_any_work(finished, tmp_path, monkeypatch):
    import featalign.studies.compare.run as module

    monkeypatch.setattr(module, "load", lambda *_: pytest.fail("work was begun"))
    with pytest.raises(FeatalignError, match="--overwrite"):
        run(SMALL, finished.folder, progress=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(FeatalignError, match="file"):
        run(SMALL, tmp_path / "file" / "below", progress=False)


def test_interrupted_run_leaves_nothing_half_written(tmp_path, monkeypatch):
    from featalign.studies.compare.result import CompareResult

    def stop(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(CompareResult, "page", stop)
    config = SMALL.changed(seeds=1, methods=("vanilla",), curve=0, evidence=False)
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "cut", progress=False)
    assert list(tmp_path.iterdir()) == []


def test_other_families_and_clients_without_samples(tmp_path):
    """A convolutional family on flattened pictures; most of 40 clients get no sample and are left out by name."""
    config = RunConfig(
        seeds=1, epochs=1, model="conv1d", model_options={"width": 4, "blocks": 1}, split="quantity", alpha=0.02,
        clients=40, probe=60, augment="none", curve=0, evidence=False, methods=("vanilla",),
    )  # fmt: skip
    result = run(config, tmp_path / "run", progress=False)
    clients = result.frames["clients"]
    left = set(clients[clients["note"] != ""]["client"])
    kept = {row.removeprefix("client-") for row in result.frames["rows"]["row"] if row.startswith("client-")}
    assert kept == set(clients["client"]) - left and len(kept) >= 2
    if left:
        assert all(any(f"client {name} is left out" in note for note in result.facts["notes"]) for name in left)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"methods": ("zip", "zip")}, "twice"),
        ({"methods": ("zip",), "options": {"ot-acts": {"cost": "correlation"}}}, "not among methods"),
        ({"options": {"ot-acts": 3}}, "table of options"),
        ({"mixing": 2}, "between 0 and 1"),
        ({"ridge": 0}, "above 0"),
        ({"curve": "many"}, "curve"),
        ({"mixing": float("nan")}, "mixing"),
    ],
)
def test_impossible_configurations(options, message):
    with pytest.raises(BadOption, match=message) as caught:
        CompareConfig(**options)
    assert len(str(caught.value).splitlines()) == 1


def test_options_reach_methods_from_toml_and_command_line(tmp_path):
    from featalign.studies.compare.config import method_options, model_texts

    config = RunConfig(
        options=method_options(["ot-acts.cost=correlation"]), model_options=model_texts("mlp", ["hidden=8,4"])
    )
    (tmp_path / "config.toml").write_text(config.to_toml())
    again = RunConfig.from_toml(tmp_path / "config.toml")
    assert again.options == {"ot-acts": {"cost": "correlation"}} and tuple(again.model_options["hidden"]) == (8, 4)
    for words, message in (
        ("ot-acts.price=1", "no option 'price'"),
        ("ot-acts", "METHOD.OPTION=VALUE"),
        ("ot.x=1", "ot"),
    ):
        with pytest.raises(FeatalignError, match=message):
            method_options([words])
    with pytest.raises(FeatalignError, match="no option 'depth'"):
        model_texts("mlp", ["depth=3"])


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--dataset", "mnits"], "did you mean 'mnist'"),
        (["--methods", "ot-act"], "did you mean 'ot-acts'"),
        (["--option", "ot-acts.price=1"], "no option 'price'"),
        (["--model", "mpl"], "did you mean 'mlp'"),
        (["--split", "idd"], "did you mean 'iid'"),
        (["--augment", "shift"], "shift-mix"),
        (["--clients", "0"], "at least 1"),
        (["--special", "11"], "special"),
        (["--config", "nowhere.toml"], "nowhere.toml"),
    ],
)
def test_command_line_errors_are_one_line_and_leave_nothing(arguments, message, tmp_path, monkeypatch, capsys):
    from featalign.cli import main

    monkeypatch.setattr(sys, "argv", ["featalign", "compare", *arguments, "--out", str(tmp_path / "out"), "--quiet"])
    with pytest.raises(SystemExit) as caught:
        main()
    said = capsys.readouterr().err.strip()
    assert caught.value.code == 2 and message in said and len(said.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_import_is_light():
    """Heavy libraries are imported by what needs them, not by `import featalign` or `--help`."""
    heavy = "('torch', 'plotly', 'ot', 'sae_lens', 'pandas')"
    code = f"import sys, featalign, featalign.cli; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
