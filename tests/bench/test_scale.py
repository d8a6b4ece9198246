"""What fusion costs: rows, ratios, refusals."""

import json

import pytest
from typer.testing import CliRunner

from featalign.bench.scale import scale
from featalign.errors import BadOption


def test_deep_networks_have_the_layers_of_the_paper():
    (row,) = scale(["deep"], positions=200, progress=False).rows
    assert (row.layers, row.rows, row.clients, row.ratio) == (71, 400, 2, 1.0)
    assert row.processor > 0 and row.memory > 1


def test_ratios_are_to_the_fewest_clients():
    from featalign.cli.bench import bench

    command = [
        "scale",
        "--case",
        "clients",
        "--clients",
        "3",
        "--clients",
        "2",
        "--method",
        "vanilla",
        "--json",
        "--quiet",
    ]
    found = CliRunner().invoke(bench, command)
    assert found.exit_code == 0, found.output
    rows = json.loads(found.stdout)
    assert [row["clients"] for row in rows] == [2, 3] and rows[0]["ratio"] == 1.0
    assert rows[1]["ratio"] == pytest.approx(rows[1]["processor"] / rows[0]["processor"])


def test_unknown_cases_and_single_clients_are_refused():
    with pytest.raises(BadOption, match="deep, clients"):
        scale(["wide"])
    with pytest.raises(BadOption, match="at least 2 clients"):
        scale(["clients"], [1])
