"""Rounds on disk: what was stopped goes on, and gives what an undisturbed run gives."""

import multiprocessing
import os
import random
import signal
import time

import pandas as pd
import pytest
import torch

from featalign.errors import BadOption, FolderExists
from featalign.federated import Local, run
from tests.federated.conftest import small

OPTIONS = [
    {},
    {"local": Local("scaffold")},
    {"momentum": 0.7, "weigh": ("fedavot", {"known": False}), "select": ("k-of-n", {"k": 2})},
    {"weigh": ("horvitz-thompson", {"known": False}), "select": ("drop-outs", {})},
]


def same(a, b):
    for name, frame in a.figures_only().items():
        pd.testing.assert_frame_equal(frame, b.figures_only()[name])
    for name, value in a.module.state_dict().items():
        assert torch.equal(value, b.module.state_dict()[name])


@pytest.mark.parametrize("options", OPTIONS)
def test_a_resumed_run_equals_an_undisturbed_one(federation, tmp_path, options):
    whole = run(federation, 4, progress=False, **options)
    run(federation, 2, folder=tmp_path / "run", progress=False, **options)
    same(run(federation, 4, folder=tmp_path / "run", resume=True, progress=False, **options), whole)
    assert len(list((tmp_path / "run" / "rounds").glob("*/weights.safetensors"))) == 4


def test_a_folder_in_use_or_of_other_settings_is_refused(federation, tmp_path):
    run(federation, 1, folder=tmp_path / "run", progress=False)
    with pytest.raises(FolderExists, match="resume=True"):
        run(federation, 1, folder=tmp_path / "run", progress=False)
    with pytest.raises(BadOption, match="other settings"):
        run(federation, 2, folder=tmp_path / "run", resume=True, progress=False, momentum=0.5)
    with pytest.raises(BadOption, match="other settings"):
        run(small(3), 2, folder=tmp_path / "run", resume=True, progress=False)


def endless(folder):
    torch.set_num_threads(1)
    run(small(), 10_000, folder=folder, resume=True, progress=False)


def complete(folder):
    return len(list(folder.glob("rounds/[0-9]*/round.json")))


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_kill_9_loses_at_most_the_round_in_hand(federation, tmp_path, kills):
    folder = tmp_path / "run"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["featalign.federated", "tests.federated.conftest"])
    rng, before = random.Random(0), 0
    for _ in range(kills):
        process = context.Process(target=endless, args=(folder,))
        process.start()
        until = time.time() + 60
        while complete(folder) <= before and time.time() < until:
            time.sleep(0.005)
        time.sleep(rng.random() * 0.1)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        found = complete(folder)
        assert found > before
        before = found
    whole = run(federation, before, progress=False)
    same(run(federation, before, folder=folder, resume=True, progress=False), whole)
