"""The small table of fusion: what it holds, whom it leaves out, what it refuses."""

import json

import pytest
import torch
from typer.testing import CliRunner

from featalign.bench.fusion import PAIRS, fusion
from featalign.clients import Cohort
from featalign.errors import BadOption, UnknownName
from featalign.plots.fusion import methods_table
from tests.fuse.conftest import network


@pytest.fixture
def tiny(monkeypatch):
    """A pair that needs no training."""

    def pair(seed, progress):
        clients = [network(seed=2 * seed + k, bias=True) for k in range(2)]
        draw = torch.Generator().manual_seed(seed)
        inputs, labels = torch.randn(40, 12, generator=draw), torch.randint(0, 5, (40,), generator=draw)
        return Cohort.of(clients, inputs, (inputs, labels), "classification", seed=seed)

    monkeypatch.setitem(PAIRS._entries, "tiny", pair)


def test_rows_of_both_stages_over_seeds(tiny):
    result = fusion(["tiny"], ["ot-acts", "zipit", "ties"], seeds=2, progress=False)
    frame = result.to_frame()
    assert set(frame["stage"]) == {"client", "ensemble", "fused", "refit"} and set(frame["seeds"]) == {2}
    fused = [row for row in result.rows if row.method]
    assert {row.method for row in fused} == {"ot-acts", "zipit"} and len(fused) == 8
    assert all(row.seconds > 0 and row.memory > 1 and 0 <= row.value <= 1 for row in fused)
    assert "common start" in result.left_out["tiny"]["ties"]
    figure = methods_table(frame)
    assert {trace.name for trace in figure.data} == {"fused", "fused and refitted"}


def test_unknown_pairs_and_methods_that_want_dictionaries_are_refused(tiny):
    with pytest.raises(UnknownName, match="characters"):
        fusion(["letters"], ["ot-acts"], progress=False)
    with pytest.raises(BadOption, match="featalign compare"):
        fusion(["tiny"], ["feature-project"], progress=False)


def test_command(tiny):
    from featalign.cli.bench import bench

    found = CliRunner().invoke(bench, ["fusion", "--pair", "tiny", "--method", "slerp", "--json", "--quiet"])
    assert found.exit_code == 0, found.output
    rows = json.loads(found.stdout)["rows"]
    assert [row["stage"] for row in rows] == ["client", "client", "ensemble", "fused", "refit"]
    shown = CliRunner().invoke(bench, ["fusion", "--pair", "tiny", "--method", "ties", "--quiet"])
    assert shown.exit_code == 0 and "left out of tiny: ties (it adds up" in shown.stdout
