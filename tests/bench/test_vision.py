"""The table of CIFAR-10, on pairs that need no training."""

import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from featalign import data
from featalign.bench import vision as bench_of
from featalign.bench.vision import vision
from featalign.cli.bench import bench


def untrained(seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))


@pytest.fixture
def pairs(monkeypatch):
    digits = data.load("digits")
    monkeypatch.setattr(data, "load", lambda name, **options: digits)
    told = []

    def parents(model, dataset, seed=0, progress=True, epochs=None, **options):
        told.append((model, seed, epochs, options))
        return [SimpleNamespace(model=untrained(2 * seed + k)) for k in range(2)]

    monkeypatch.setattr(bench_of, "parents", parents)
    return told


def test_every_method_has_the_rows_that_it_can_have(pairs):
    found = vision(("vgg11",), ("zip", "ot-acts"), 2, 40, 60, (0.3,), progress=False, width=0.25)
    assert [each[:2] for each in pairs] == [("vgg11", 0), ("vgg11", 1)] and pairs[0][3] == {"width": 0.25}
    names = [row.name for row in found.rows if row.seed == 1 and row.share == 0.5]
    assert names[:3] == ["parent-A", "parent-B", "ensemble"]
    assert names[3:] == ["zip", "zip+refit", "ot-acts", "ot-acts+repair", "ot-acts+refit", "ot-acts+repair+refit"]
    frame = found.to_frame().loc["vgg11"]
    rows = [row.accuracy for row in found.rows if row.name == "zip+refit" and row.share == 0.5]
    assert frame.loc["zip+refit", "accuracy"] == pytest.approx(sum(rows) / 2) and frame["seeds"].eq(2).all()
    assert {row.share for row in found.rows} == {0.3, 0.5}


def test_methods_without_repair_are_not_run_for_it(pairs, monkeypatch):
    from featalign import fuse

    asked, solve = [], fuse.solve
    monkeypatch.setattr(fuse, "solve", lambda *given, **options: asked.append(options) or solve(*given, **options))
    vision(("vgg11",), ("zip",), 1, 40, 60, progress=False)
    assert [(each["repair"], each["refit"]) for each in asked] == [(False, False), (True, False), (False, True)]


def test_json_holds_what_was_asked_beside_the_rows(pairs):
    done = CliRunner().invoke(
        bench, ["vision", "--model", "vgg11", "--probe", "40", "--method", "vanilla", "--quiet", "--json"]
    )
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["config"]["probe"] == 40 and found["config"]["models"]["vgg11"] == {"width": 0.25, "batch_norm": True}
    assert [row["name"] for row in found["rows"]][2:4] == ["ensemble", "vanilla"]
