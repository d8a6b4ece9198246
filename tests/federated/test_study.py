import json

import pandas as pd
import pytest
from typer.testing import CliRunner

import featalign as fa
from featalign.cli import app
from featalign.errors import BadOption, FeatalignError, FolderExists
from featalign.studies import load, schema
from featalign.studies.federate import FederateConfig, federate

RUNS = {
    "FedAvg": {},
    "a/b <c>": {"fuse": "ot-acts", "refit": True},
    "moments only": {"refit": "moments", "weigh": "fedavot", "select": "k-of-n", "select_options": {"k": 3}},
    "SCAFFOLD": {"algorithm": "scaffold", "features": 1},
}
CONFIG = FederateConfig(clients=4, rounds=2, model_options={"hidden": [16]}, probe=100, runs=RUNS)


def page_of(folder):
    return (folder / "report.html").read_text()


def test_a_study_is_saved_with_its_page_and_read_back(tmp_path):
    result = federate(CONFIG, tmp_path / "run", progress=False)
    again = load(tmp_path / "run")
    assert list(again.frames) == ["rounds", "clients", "traffic", "faults", "features", "flows"]
    assert set(again.frames["features"]["run"]) == {"SCAFFOLD"} and "Features over rounds" in page_of(tmp_path / "run")
    for name, frame in result.frames.items():
        pd.testing.assert_frame_equal(frame, again.frames[name])
    assert again.config == CONFIG and again.metric.name == "accuracy"
    assert again.to_frame().index.tolist() == list(RUNS)
    page = page_of(tmp_path / "run")
    assert "a/b &lt;c&gt;" in page and "a/b <c>" not in page
    assert "moments only" in page and "deliverable mass" in page and "Gram matrices" in page
    properties = schema("federate")["properties"]["frames"]["properties"]
    assert all("description" in each for each in properties["rounds"]["items"]["properties"].values())
    assert json.loads((tmp_path / "run" / "results.json").read_text())["study"] == "federate"


def test_a_stopped_study_goes_on_and_gives_the_same(tmp_path):
    whole = federate(CONFIG, progress=False)
    federate(CONFIG, tmp_path / "run", progress=False)
    last = sorted((tmp_path / "run" / "checkpoints").iterdir())[-1]
    for file in (last / "rounds" / "00002").iterdir():
        file.unlink()
    (last / "rounds" / "00002").rmdir()
    resumed = federate(out=tmp_path / "run", resume=True, progress=False)
    for name, frame in whole.frames.items():
        seconds = [column for column in frame if "seconds" in column]
        pd.testing.assert_frame_equal(frame.drop(columns=seconds), resumed.frames[name].drop(columns=seconds))
    with pytest.raises(FolderExists):
        federate(CONFIG, tmp_path / "run", progress=False)


def test_the_command_reads_toml_and_resumes(tmp_path):
    (tmp_path / "fed.toml").write_text(
        "clients = 3\nprobe = 50\nrounds = 9\n"
        '[model_options]\nhidden = [8]\n[runs.plain]\n[runs.refit]\nrefit = "moments"\n'
    )
    out = str(tmp_path / "run")
    arguments = ["federate", "--config", str(tmp_path / "fed.toml"), "--out", out, "--rounds", "2", "--quiet"]
    first = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert first.exit_code == 0 and "plain" in first.stdout and "report.html" in first.stdout
    again = CliRunner().invoke(app, ["federate", "--resume", out, "--quiet"], catch_exceptions=False)
    assert again.exit_code == 0 and len(load(out).frames["rounds"]) == 4
    with pytest.raises(BadOption, match="either --config"):
        CliRunner().invoke(app, ["federate"], catch_exceptions=False)
    found = CliRunner().invoke(
        app, ["federate", "avot", "--users", "8", "--rounds", "50", "--seeds", "1"], catch_exceptions=False
    )
    assert found.stdout.startswith("seed 0: feasible")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"runs": {"x": {"round": 3}}}, "run 'x': no option 'round', did you mean 'rounds'?"),
        ({"runs": {"x": 3}}, "give a table of settings"),
        ({"rounds": 0}, "rounds = 0"),
        ({"refit": "probe"}, "refit"),
        ({"clients": 0}, "clients = 0"),
        ({"start": "random"}, "start"),
    ],
)
def test_bad_configurations_are_one_line_errors(options, message):
    with pytest.raises(BadOption, match=message.replace("?", r"\?")):
        FederateConfig(**options)


def test_unknown_names_are_found_before_any_work(tmp_path):
    for options in ({"fuse": "zap"}, {"select": "some"}, {"weigh": "by-hand"}, {"algorithm": "fedsgd"}):
        with pytest.raises(FeatalignError, match="unknown"):
            federate(FederateConfig(clients=2, **options), tmp_path / "run", progress=False)
        assert not (tmp_path / "run").exists()


def test_the_verb_is_at_the_door():
    assert fa.federate is federate and fa.federated.run is not None
