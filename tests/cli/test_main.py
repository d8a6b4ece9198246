"""The entry point: every error is one line and exit status 2, whatever it is; `--debug` shows where."""

import errno
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from typer.testing import CliRunner

import featalign
from featalign import storage
from featalign.cli import commands
from featalign.errors import FeatalignError
from featalign.fuse import METHODS

OWN = """
from featalign.align import SpaceMap, matcher

@matcher("as-they-stand")
def as_they_stand(pair) -> SpaceMap:
    \"\"\"Units left where they are.\"\"\"
    return SpaceMap.identity(pair.target.size)
"""
CLI = [sys.executable, "-m", "featalign.cli"]


def call(*arguments, **options):
    return subprocess.run([*CLI, *arguments], stderr=subprocess.PIPE, text=True, **options)


@pytest.fixture
def called(monkeypatch, capsys):
    """The command line without a process of its own: exit status, standard output and standard error."""
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # `main` replaces it
    monkeypatch.setattr(commands, "_close", lambda stream: None)

    def main(*arguments):
        monkeypatch.setattr(sys, "argv", ["featalign", *arguments])
        with pytest.raises(SystemExit) as stop:
            commands.main()
        return stop.value.code, *capsys.readouterr()

    return main


@pytest.mark.parametrize(
    "error, words",
    [
        (FeatalignError("two\nlines"), "FeatalignError: two lines"),
        (PermissionError(errno.EACCES, "Permission denied", "a/b"), "OSError: 'a/b': Permission denied; --debug"),
        (OSError(errno.ENOSPC, "No space left on device"), "OSError: No space left on device; --debug"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), "OSError: Broken pipe"),
        (OSError("odd"), "OSError: odd"),
    ],
)
def test_errors_are_one_line_and_debug_shows_where(error, words, called, monkeypatch):
    def command(args):
        raise error

    monkeypatch.setattr(commands, "app", command)
    code, _, text = called("compare")
    assert code == 2 and text.startswith(words) and len(text.splitlines()) == 1
    code, _, text = called("compare", "--debug")
    assert code == 2 and "Traceback" in text
    monkeypatch.setenv("FEATALIGN_DEBUG", "1")
    code, _, text = called("compare")
    assert code == 2 and "Traceback" in text


def test_debug_is_accepted_anywhere_and_listed(called, tmp_path):
    code, _, text = called("--debug", "compare", "--mixing", "2", "--out", str(tmp_path / "x"))
    assert code == 2 and "Traceback" in text
    code, text, _ = called("--help")
    assert code == 0 and "--debug" in text and "compare" in text


def test_help_lists_the_verbs_first_and_version_is_told(called):
    text = called("--help")[1]
    names = [text.index(f"│ {name} ") for name in ("compare", "match", "diagnose", "fuse", "federate", "doctor")]
    assert names == sorted(names)
    assert called("--version")[1].strip() == featalign.__version__
    assert "runs.NAME" in called("federate", "--help")[1]


def test_methods_are_listed_with_what_they_need_and_take():
    rows = json.loads(CliRunner().invoke(commands.app, ["methods", "--json"]).stdout)
    assert [row["method"] for row in rows] == METHODS.names()
    found = {row["method"]: row for row in rows}
    assert "transcoders" in found["feature-zip"]["needs"] and "cost=distance" in found["ot-acts"]["options"]
    assert all(row["what it does"] for row in rows)


def test_methods_of_ones_own_are_imported_first(called, tmp_path, monkeypatch):
    """A method registered in a module of the current folder is known to the command."""
    (tmp_path / "mine.py").write_text(OWN)
    command = ("compare", "--methods", "as-they-stand,vanila", "--out", "x")
    env = {**os.environ, "PYTHONPATH": str(Path(featalign.__file__).parents[1])}
    done = call("--import", "mine", *command, cwd=tmp_path, env=env)
    assert done.returncode == 2 and "'vanila'" in done.stderr and "as-they-stand" in done.stderr
    monkeypatch.chdir(tmp_path)
    assert "'as-they-stand'" in called(*command)[2]
    code, _, text = called("--import", "yours", *command)
    assert code == 2 and "--import yours: ModuleNotFoundError" in text


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this machine")
def test_full_disk_on_standard_output():
    with open("/dev/full", "w") as full:
        done = call("data", "list", stdout=full)
    assert done.returncode == 2 and "No space left" in done.stderr and len(done.stderr.splitlines()) == 1


def test_closed_pipe():
    reader, writer = os.pipe()
    os.close(reader)
    done = call("data", "list", stdout=writer)
    os.close(writer)
    assert done.returncode == 2 and "Broken pipe" in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_locale_without_the_letters():
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = call("data", "list", stdout=subprocess.PIPE, env=environment)
    assert done.returncode == 0 and "mnist" in done.stdout, done.stderr


@pytest.mark.parametrize("out", ["", ".", "..", "~", "notes"])
def test_overwrite_never_empties_what_is_no_run(out, called, tmp_path, monkeypatch):
    here = tmp_path / "work" / "here"
    (here / "notes").mkdir(parents=True)
    for folder in (tmp_path, tmp_path / "work", here, here / "notes"):
        (folder / "precious").write_text("1")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(here)
    out = os.path.join(tmp_path, "") if out == "~" else out
    code, _, text = called("compare", "--out", out, "--overwrite", "--quiet")
    assert code == 2 and "FolderExists" in text and len(text.splitlines()) == 1, text
    assert all((f / "precious").exists() for f in (tmp_path, tmp_path / "work", here, here / "notes"))


@pytest.mark.parametrize("line", ['seeds = "3"', "hidden = 3", "k = 1e9", "ridge = inf", "sedes = 3"])
def test_a_wrong_configuration_file(line, called, tmp_path):
    (tmp_path / "a.toml").write_text(line)
    code, _, text = called("compare", "--config", str(tmp_path / "a.toml"), "--out", str(tmp_path / "run"), "--quiet")
    assert code == 2 and len(text.splitlines()) == 1
    assert text.startswith("BadOption: ") and not (tmp_path / "run").exists()


def test_two_runs_on_one_folder(tmp_path):
    with storage.claim(tmp_path / "run"):
        done = call("compare", "--out", str(tmp_path / "run"), "--quiet")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("FolderInUse: ") and str(os.getpid()) in done.stderr
