"""The main job end to end on digits: the run folder, its rebuild from its configuration, own modules, errors."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

import featalign as fa
from featalign import storage
from featalign.compare import run
from featalign.config import RunConfig
from featalign.errors import FeatalignError

SMALL = RunConfig(
    seeds=1, epochs=8, probe=120, augmented=600, curve=3,
    methods=("vanilla", "ot-acts", "feature-ot", "feature-reexpress", "zip", "feature-zip"),
)  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "digits"
    return run(SMALL, folder, progress=False)


def test_run_folder_holds_what_was_promised(finished):
    folder = finished.folder
    for name in ("config.toml", "results.json", "matrices.safetensors", "browser.json", "report.html"):
        assert (folder / name).stat().st_size > 0
    content = json.loads((folder / "results.json").read_text())
    assert content["config"] == SMALL.to_dict()
    for name in ("client-A", "client-B", "ensemble-softmax", "vanilla", "ot-acts+refit", "feature-zip+refit"):
        accuracy = content["methods"][name]["accuracy"]
        assert 0 <= accuracy["mean"] <= 1 and len(accuracy["values"]) == 1
    for name, curve in content["curves"].items():
        assert curve["mixing"] == [0.0, 0.5, 1.0]
        assert curve["accuracy"][1]["mean"] == pytest.approx(content["methods"][name]["accuracy"]["mean"]), name
    assert set(content["spaces"]) == {"fc1", "fc2"}
    for space in content["spaces"].values():
        plan = space["seeds"][0]["feature"]
        assert plan["lower_bound"] <= plan["value"] + 1e-9
    assert content["dictionaries"]["A"]["fc1"]["explained_variance"]["mean"] > 0.5


def test_curves_end_at_the_clients(finished):
    """At mixing weight 0 and 1 every method that can must return a client's accuracy."""
    methods = finished.content["methods"]
    for name in ("vanilla", "ot-acts", "ot-acts+refit", "zip+refit"):
        accuracy = [point["mean"] for point in finished.content["curves"][name]["accuracy"]]
        assert accuracy[0] == pytest.approx(methods["client-B"]["accuracy"]["mean"]), name
        assert accuracy[-1] == pytest.approx(methods["client-A"]["accuracy"]["mean"]), name


def test_fused_models_reload_and_score_what_the_table_says(finished):
    weights = storage.load_tensors(finished.folder / "models" / "seed-0" / "zip+refit.safetensors")
    module = finished.modules()["vanilla"]
    module.load_state_dict(weights)
    trial = finished.trials[0]
    assert trial.accuracy(module) == finished.content["methods"]["zip+refit"]["accuracy"]["mean"]


def test_dictionaries_reload(finished):
    from featalign.dictionaries import load

    loaded = load(finished.saes / "A" / "fc1")
    trained = finished.trials[0].dictionaries["fc1"][0]
    activations = torch.rand(20, 64)
    assert torch.allclose(loaded.encode(activations), trained.encode(activations), atol=1e-5)
    assert loaded.metadata["client"] == "A" and loaded.metadata["space"] == "fc1"


def test_same_configuration_gives_same_numbers(finished, tmp_path):
    again = run(RunConfig.from_toml(finished.folder / "config.toml"), tmp_path / "again", progress=False)
    for name, entry in finished.content["methods"].items():
        assert again.content["methods"][name]["accuracy"] == entry["accuracy"], name


def test_existing_folder_is_refused_before_any_work(finished):
    with pytest.raises(FeatalignError, match="--overwrite"):
        run(SMALL, finished.folder, progress=False)


def test_interrupted_run_leaves_nothing_half_written(tmp_path, monkeypatch):
    import featalign.report

    def stop(folder):
        raise KeyboardInterrupt

    monkeypatch.setattr(featalign.report, "build", stop)
    with pytest.raises(KeyboardInterrupt):
        run(SMALL, tmp_path / "cut", progress=False)
    assert list(tmp_path.iterdir()) == []


def _trained(seed, x, y, widths=(16, 12)):
    torch.manual_seed(seed)
    module = nn.Sequential(
        nn.Linear(20, widths[0]), nn.ReLU(), nn.Linear(widths[0], widths[1]), nn.ReLU(), nn.Linear(widths[1], 4)
    )
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(x), y).backward()
        optimizer.step()
    return module


@pytest.fixture(scope="module")
def own():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(600, 20, generator=generator)
    y = (x @ torch.randn(20, 4, generator=generator)).argmax(1)
    return [_trained(s, x, y) for s in (0, 1)], x, y


def test_own_modules(own):
    modules, x, y = own
    before = [parameter.clone() for parameter in modules[0].parameters()]
    result = fa.compare(
        modules, probe=x[:300], evaluate=(x, y), methods=("vanilla", "ot-acts"), curve=0, progress=False
    )
    frame = result.to_frame()
    assert frame.loc["ot-acts+refit", "accuracy"] > frame.loc["vanilla", "accuracy"]
    assert "ot-acts" in result._repr_html_() and "accuracy" in result.figures
    assert "ot-acts" in repr(result) and len(repr(result)) < 10_000
    assert all(torch.equal(p, q) for p, q in zip(before, modules[0].parameters()))


def test_loader_as_probe_equals_the_tensor(own):
    modules, x, y = own
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x[:300], y[:300]), batch_size=64)
    options = {"evaluate": (x, y), "methods": ("ot-acts",), "curve": 0, "progress": False}
    ours = [fa.compare(modules, probe=probe, **options).content["methods"] for probe in (x[:300], loader)]
    assert ours[0]["ot-acts"]["accuracy"] == ours[1]["ot-acts"]["accuracy"]


def test_bad_modules_and_probes_are_named(own):
    modules, x, y = own
    options = {"evaluate": (x, y), "methods": ("vanilla",), "curve": 0, "progress": False}
    deeper = nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 4))
    with pytest.raises(FeatalignError, match="architecture"):
        fa.compare([modules[0], deeper], probe=x, **options)
    with pytest.raises(FeatalignError, match=r"16 units|24 units"):
        fa.compare([_trained(3, x, y, (24, 12)), modules[0]], probe=x, **options)
    with pytest.raises(FeatalignError, match="empty"):
        fa.compare(modules, probe=x[:0], **options)
    with pytest.raises(FeatalignError, match=r"rejects the probe \[600, 7\]"):
        fa.compare(modules, probe=x[:, :7], **options)
    with pytest.raises(FeatalignError, match="zero clients"):
        fa.compare([], probe=x, **options)
    with pytest.raises(FeatalignError, match="did you mean 'vanilla'"):
        fa.compare(modules, probe=x, **{**options, "methods": ("vanila",)})
    broken = _trained(0, x, y)
    with torch.no_grad():
        broken[2].weight[0, 0] = np.nan
    with pytest.raises(FeatalignError, match="NaN"):
        fa.compare([broken, modules[1]], probe=x, **options)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--dataset", "mnits"], "did you mean 'mnist'"),
        (["--methods", "ot-act"], "did you mean 'ot-acts'"),
        (["--clients", "0"], "at least 1"),
        (["--probe", "0"], "at least 1"),
        (["--special", "11"], "special"),
        (["--mixing", "2"], "between 0 and 1"),
        (["--config", "nowhere.toml"], "nowhere.toml"),
    ],
)
def test_command_line_errors_are_one_line_and_exit_2(arguments, message, tmp_path):
    command = [sys.executable, "-m", "featalign.cli", "compare", *arguments, "--out", str(tmp_path / "out"), "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_import_is_light():
    """Heavy libraries are imported by what needs them, not by `import featalign` or `--help`."""
    heavy = "('torch', 'plotly', 'ot', 'sae_lens', 'pandas')"
    code = f"import sys, featalign, featalign.cli; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
