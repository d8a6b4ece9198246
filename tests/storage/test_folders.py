"""Output folders: what is replaced and what never, kills in the middle, two runs on one folder, impossible places."""

import errno
import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch

from featalign import storage
from featalign.errors import FolderExists, FolderInUse, StorageError
from featalign.storage import folders, temporary

FILES = 12
FORK = multiprocessing.get_context("fork")


def write_run(path, generation, overwrite=True):
    with storage.atomic_folder(path, overwrite) as folder:
        for place in range(FILES):
            (folder / f"{place}.txt").write_text(str(generation), encoding="utf-8")


def generation_of(path):
    """The generation that a whole run holds; fails when the run is not whole."""
    texts = {(path / f"{place}.txt").read_text(encoding="utf-8") for place in range(FILES)}
    assert len(texts) == 1 and (path / ".featalign").is_file(), f"mixed or unfinished: {texts}"
    return int(texts.pop())


def test_a_folder_appears_when_complete_and_carries_a_marker(tmp_path):
    with storage.atomic_folder(tmp_path / "run", kind="diagnosis") as folder:
        assert not (tmp_path / "run").exists()
        (folder / "a").write_text("1")
    assert json.loads((tmp_path / "run" / ".featalign").read_text()) == {"kind": "diagnosis", "version": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_block_that_raises_leaves_the_old_run_and_nothing_else(tmp_path):
    write_run(tmp_path / "run", 1)
    with pytest.raises(KeyboardInterrupt), storage.atomic_folder(tmp_path / "run", overwrite=True) as folder:
        (folder / "0.txt").write_text("2")
        raise KeyboardInterrupt
    assert generation_of(tmp_path / "run") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("out", ["", ".", "..", "../..", "/", "~", "link", "inside/.."])
@pytest.mark.parametrize("overwrite", [True, False])
def test_the_current_folder_those_above_home_and_root_are_never_replaced(out, overwrite, tmp_path, monkeypatch):
    home, here = tmp_path / "home", tmp_path / "work" / "here"
    home.mkdir(), (here / "inside").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    (here / "link").symlink_to(home)
    for folder in (home, here, here.parent):  # not even where they hold a run
        (folder / ".featalign").write_text("{}")
        (folder / "precious").write_text("1")
    with pytest.raises(FolderExists) as caught:
        write_run(os.path.expanduser(out), 1, overwrite)
    assert len(str(caught.value).splitlines()) == 1
    assert all((folder / "precious").exists() for folder in (home, here, here.parent))


@pytest.mark.parametrize("held", [["thesis.tex"], ["results.json"], ["config.toml", "data.csv"], [".git/config"]])
def test_what_is_no_run_is_never_replaced(held, tmp_path):
    for name in held:
        (tmp_path / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mine" / name).write_text("1")
    for out in (tmp_path / "mine", tmp_path / "link"):
        if out.name == "link":
            out.symlink_to(tmp_path / "mine")
        with pytest.raises(FolderExists, match="holds no run"):
            write_run(out, 1)
    assert all((tmp_path / "mine" / name).read_text() == "1" for name in held)


@pytest.mark.parametrize(
    "held",
    [
        ["results.json", "config.toml", "models/seed-0/zip.safetensors"],
        ["results.json", "browser.json", "dictionaries/fc1/cfg.json"],
        ["A/fc1/cfg.json", "A/fc1/sae_weights.safetensors", "B/fc1/cfg.json", "B/fc1/history.json"],
    ],
)
def test_runs_from_before_the_marker_are_replaced(held, tmp_path):
    for name in held:
        (tmp_path / "run" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / name).write_text("{}")
    with pytest.raises(FolderExists, match="--overwrite"):
        write_run(tmp_path / "run", 1, overwrite=False)
    write_run(tmp_path / "run", 1)
    assert generation_of(tmp_path / "run") == 1


def test_a_link_to_a_run_stays_a_link(tmp_path):
    write_run(tmp_path / "run", 1)
    (tmp_path / "latest").symlink_to(tmp_path / "run")
    write_run(tmp_path / "latest", 2)
    assert (tmp_path / "latest").is_symlink() and generation_of(tmp_path / "run") == 2


def _overwrite_for_ever(path, begun):
    write_run(path, 1)
    begun.set()
    generation = 1
    while True:
        generation += 1
        write_run(path, generation)


def test_a_hundred_kills_leave_the_old_run_or_the_new_one_whole(tmp_path):
    path, moments = tmp_path / "run", random.Random(0)
    for _ in range(100):
        begun = FORK.Event()
        writer = FORK.Process(target=_overwrite_for_ever, args=(path, begun))
        writer.start()
        assert begun.wait(20)
        time.sleep(moments.uniform(0, 0.02))
        writer.kill()
        writer.join()
        storage.recover(path)
        assert generation_of(path) >= 1
    write_run(path, 7)
    assert [entry.name for entry in tmp_path.iterdir()] == ["run"]  # what the dead left is swept


def _die_at(moment, path):
    """Overwrite once and die right before or after one of the three renames or the two removals of a replacement."""
    calls = iter(range(100))

    def wrap(function):
        def wrapped(*arguments, **options):
            if next(calls) == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            found = function(*arguments, **options)
            if next(calls) == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            return found

        return wrapped

    folders.os.rename = wrap(os.rename)
    folders.remove = wrap(folders.remove)
    write_run(path, 2)


@pytest.mark.parametrize("moment", range(10))
def test_a_kill_at_every_step_of_the_replacement(moment, tmp_path):
    path = tmp_path / "run"
    write_run(path, 1)
    writer = FORK.Process(target=_die_at, args=(moment, path))
    writer.start()
    writer.join()
    assert writer.exitcode == -signal.SIGKILL
    with pytest.raises(FolderExists):  # the next start sets it right before it looks
        write_run(path, 3, overwrite=False)
    assert generation_of(path) == (1 if moment < 5 else 2)
    write_run(path, 3)
    assert generation_of(path) == 3 and [entry.name for entry in tmp_path.iterdir()] == ["run"]


def _hold(path, held, release):
    with storage.claim(path):
        held.set()
        release.wait(30)


def test_the_second_run_on_one_folder_is_told_at_once(tmp_path):
    held, release = FORK.Event(), FORK.Event()
    first = FORK.Process(target=_hold, args=(tmp_path / "run", held, release))
    first.start()
    assert held.wait(20)
    with pytest.raises(FolderInUse, match=f"process {first.pid}") as caught, storage.claim(tmp_path / "run"):
        pass
    assert len(str(caught.value).splitlines()) == 1
    write_run(tmp_path / "other", 1)  # another folder is free, and leaves that lock alone
    with pytest.raises(FolderInUse):
        write_run(tmp_path / "run", 1)
    first.kill()  # the lock of a dead process holds nobody up, and the next run sweeps it
    first.join()
    write_run(tmp_path / "other", 2)
    assert [entry.name for entry in tmp_path.iterdir()] == ["other"]
    write_run(tmp_path / "run", 1, overwrite=False)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["other", "run"]


def test_inside_a_claim_the_folder_can_be_written(tmp_path):
    with storage.claim(tmp_path / "run"):
        write_run(tmp_path / "run", 1, overwrite=False)
    with pytest.raises(FolderExists), storage.claim(tmp_path / "run"):
        pass


def test_temporaries_of_dead_processes_are_swept_and_others_kept(tmp_path):
    dead = FORK.Process(target=os.getpid)
    dead.start()
    dead.join()
    node = temporary._node()
    (tmp_path / f".a.json.{node}-{dead.pid}-0123abcd.tmp").write_text("")
    (tmp_path / f".run.{node}-{dead.pid}-0123abcd.tmp").mkdir()
    kept = [f".b.json.{node}-{os.getpid()}-0123abcd.tmp", f".c.ffffff-{dead.pid}-0123abcd.tmp", ".mine.tmp", ".x.old"]
    kept = [name for name in kept if not name.startswith(".c.") or node != "ffffff"]
    for name in kept:
        (tmp_path / name).write_text("")
    storage.sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)
    week = time.time() - 8 * 24 * 3600
    os.utime(tmp_path / kept[1], (week, week))
    storage.sweep(tmp_path)
    assert not (tmp_path / kept[1]).exists()


@pytest.mark.parametrize("below", ["file", "file/run", "file/a/run", "x" * 300, "a/" + "x" * 300, "a\0b", "/proc/run"])
def test_impossible_places_are_named_before_any_work(below, tmp_path):
    (tmp_path / "file").write_text("")
    path = tmp_path / below
    for attempt in (storage.require_writable, lambda p: storage.claim(p).__enter__()):
        if below == "file" and attempt is storage.require_writable:
            continue
        with pytest.raises((StorageError, FolderExists)) as caught:
            attempt(path)
        assert len(str(caught.value).splitlines()) == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_a_full_or_read_only_disk_is_one_line(number, tmp_path, monkeypatch):
    def fail(*_arguments, **_options):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "open", fail)
    for attempt in (
        lambda: storage.require_writable(tmp_path / "run"),
        lambda: storage.write_json(tmp_path / "a.json", 1),
        lambda: storage.save_tensors(tmp_path / "a.safetensors", {"a": torch.zeros(2)}),
        lambda: write_run(tmp_path / "run", 1),
    ):
        with pytest.raises(StorageError, match=os.strerror(number)) as caught:
            attempt()
        assert len(str(caught.value).splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_long_names_fit(tmp_path):
    path = tmp_path / ("é" * 120)
    write_run(path, 1)
    write_run(path, 2)
    assert generation_of(path) == 2
    storage.write_json(tmp_path / ("b" * 255), [1])
    assert len(list(tmp_path.iterdir())) == 2
