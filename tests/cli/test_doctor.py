"""`featalign doctor` and `featalign cache`: what is missing has a remedy, and only what is named or computed goes."""

import importlib.metadata
import json
import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

import featalign
from featalign.cli import app
from featalign.errors import UnknownName
from featalign.storage.inventory import clear_cache, inventory


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of two clients (one of 3,000 bytes) and a data set of 100 bytes."""
    monkeypatch.setenv("FEATALIGN_CACHE", str(tmp_path))
    for path, size in (("clients/a/weights", 1000), ("clients/b/weights", 3000), ("data/mnist/arrays", 100)):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_bytes(bytes(size))
    return tmp_path


def test_inventory_counts_entries_and_bytes(cache):
    assert [(kept.kind, kept.entries, kept.size) for kept in inventory()] == [("clients", 2, 4000), ("data", 1, 100)]


def test_data_sets_go_only_when_named(cache):
    assert clear_cache() == 4000 and [kept.kind for kept in inventory()] == ["data"]
    assert clear_cache("data") == 100 and inventory() == []
    with pytest.raises(UnknownName, match="holds no 'clients'; it holds: nothing"):
        clear_cache("clients")


def test_clear_asks_first(cache):
    kept = CliRunner().invoke(app, ["cache", "clear"], input="n\n")
    assert "nothing was deleted" in kept.output and len(inventory()) == 2
    gone = CliRunner().invoke(app, ["cache", "clear", "--yes"])
    assert "4.0 kB set free" in gone.output and [kept.kind for kept in inventory()] == ["data"]
    shown = CliRunner().invoke(app, ["cache", "--json"])
    assert json.loads(shown.output) == [{"kind": "data", "entries": 1, "bytes": 100}]


def test_doctor_finds_what_is_missing_and_outside_its_bounds(monkeypatch):
    wanted = ["torch>=2.6", "numpy<1", "not-there>=2", 'flwr-of-old>=1; extra == "federated"', 'ruff; extra == "dev"']
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: wanted)
    found = {finding.subject: finding for finding in examined()}
    assert found["torch"].state == "ok" and found["featalign"].found == featalign.__version__
    assert found["numpy"].state == "wrong" and found["numpy"].remedy == "pip install 'numpy<1'"
    assert found["not-there"].remedy == "pip install 'not-there>=2'"
    assert found["flwr-of-old"].state == "optional" and "featalign[federated]" in found["flwr-of-old"].remedy
    assert "ruff" not in found
    shown = CliRunner().invoke(app, ["doctor"])
    assert shown.exit_code == 1 and "featalign[federated]" in shown.output and "2 to mend" in shown.output
    shown = CliRunner().invoke(app, ["doctor", "--json"])
    assert {row["subject"] for row in json.loads(shown.output)} == set(found)


def examined():
    from featalign.cli.doctor import examine

    return examine()


def test_a_full_or_read_only_cache_is_named(cache, monkeypatch):
    import shutil
    from types import SimpleNamespace

    def of_cache():
        return next(finding for finding in examined() if finding.subject == "cache")

    assert of_cache().state == "ok"
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
    assert "cache clear" in of_cache().remedy
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert "FEATALIGN_CACHE" in of_cache().remedy


def test_shells_can_complete():
    given = {**os.environ, "_FEATALIGN_COMPLETE": "complete_bash", "COMP_WORDS": "featalign di", "COMP_CWORD": "1"}
    code = "import sys; sys.argv[0] = 'featalign'; from featalign.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], env=given, capture_output=True, text=True)
    assert done.stdout.split() == ["diagnose"], done.stderr


def test_one_source_of_the_version():
    """The literal in the package; pyproject reads it from there."""
    import tomllib
    from pathlib import Path

    settings = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert "version" in settings["project"]["dynamic"] and "version" not in settings["project"]
    assert settings["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "featalign.__version__"}
