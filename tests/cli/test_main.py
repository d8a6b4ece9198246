"""The entry point: every error is one line and exit status 2, whatever it is; `--debug` shows where."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import featalign
from featalign import storage
from featalign.cli import commands
from featalign.errors import FeatalignError
from featalign.fuse import METHODS

pytestmark = pytest.mark.long

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


def called(monkeypatch, capsys, error, *arguments):
    """Exit status and standard error of a command that raises."""

    def command(args):
        raise error

    monkeypatch.setattr(commands, "app", command)
    monkeypatch.setattr(sys, "argv", ["featalign", *arguments])
    monkeypatch.setattr(commands, "_close", lambda stream: None)
    with pytest.raises(SystemExit) as stop:
        commands.main()
    return stop.value.code, capsys.readouterr().err


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
def test_errors_are_one_line_and_debug_shows_where(error, words, monkeypatch, capsys):
    code, text = called(monkeypatch, capsys, error, "compare")
    assert code == 2 and text.startswith(words) and len(text.splitlines()) == 1
    code, text = called(monkeypatch, capsys, error, "compare", "--debug")
    assert code == 2 and "Traceback" in text
    monkeypatch.setenv("FEATALIGN_DEBUG", "1")
    code, text = called(monkeypatch, capsys, error, "compare")
    assert code == 2 and "Traceback" in text


def test_debug_is_accepted_anywhere_and_listed(tmp_path):
    done = call("--debug", "compare", "--mixing", "2", "--out", str(tmp_path / "x"))
    assert done.returncode == 2 and "Traceback" in done.stderr
    done = call("--help", stdout=subprocess.PIPE)
    assert done.returncode == 0 and "--debug" in done.stdout and "compare" in done.stdout


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this machine")
def test_help_lists_the_verbs_first_and_version_is_told():
    text = call("--help", stdout=subprocess.PIPE).stdout
    names = [text.index(f"│ {name} ") for name in ("compare", "match", "diagnose", "fuse", "federate", "doctor")]
    assert names == sorted(names)
    assert call("--version", stdout=subprocess.PIPE).stdout.strip() == featalign.__version__
    assert "runs.NAME" in call("federate", "--help", stdout=subprocess.PIPE).stdout


def test_methods_are_listed_with_what_they_need_and_take():
    rows = json.loads(CliRunner().invoke(commands.app, ["methods", "--json"]).stdout)
    assert [row["method"] for row in rows] == METHODS.names()
    found = {row["method"]: row for row in rows}
    assert "transcoders" in found["feature-zip"]["needs"] and "cost=distance" in found["ot-acts"]["options"]
    assert all(row["what it does"] for row in rows)


def test_methods_of_ones_own_are_imported_first(tmp_path):
    """A method registered in a module of the current folder is known to the command."""
    (tmp_path / "mine.py").write_text(OWN)
    command = ("compare", "--methods", "as-they-stand,vanila", "--out", "x")
    env = {**os.environ, "PYTHONPATH": str(Path(featalign.__file__).parents[1])}
    done = call("--import", "mine", *command, cwd=tmp_path, env=env)
    assert done.returncode == 2 and "'vanila'" in done.stderr and "as-they-stand" in done.stderr
    assert "'as-they-stand'" in call(*command, cwd=tmp_path, env=env).stderr
    done = call("--import", "yours", *command, cwd=tmp_path, env=env)
    assert done.returncode == 2 and "--import yours: ModuleNotFoundError" in done.stderr


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
def test_overwrite_never_empties_what_is_no_run(out, tmp_path):
    here = tmp_path / "work" / "here"
    (here / "notes").mkdir(parents=True)
    for folder in (tmp_path, tmp_path / "work", here, here / "notes"):
        (folder / "precious").write_text("1")
    environment = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": os.getcwd()}
    done = call("compare", "--out", os.path.join(tmp_path, "") if out == "~" else out, "--overwrite", "--quiet",
                cwd=here, env=environment)  # fmt: skip
    assert done.returncode == 2 and "FolderExists" in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
    assert all((f / "precious").exists() for f in (tmp_path, tmp_path / "work", here, here / "notes"))


@pytest.mark.parametrize("line", ['seeds = "3"', "hidden = 3", "k = 1e9", "ridge = inf", "sedes = 3"])
def test_a_wrong_configuration_file(line, tmp_path):
    (tmp_path / "a.toml").write_text(line)
    done = call("compare", "--config", str(tmp_path / "a.toml"), "--out", str(tmp_path / "run"), "--quiet")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("BadOption: ") and not (tmp_path / "run").exists()


def test_two_runs_on_one_folder(tmp_path):
    with storage.claim(tmp_path / "run"):
        done = call("compare", "--out", str(tmp_path / "run"), "--quiet")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("FolderInUse: ") and str(os.getpid()) in done.stderr
