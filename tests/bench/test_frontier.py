"""The frontier of accuracy against monosemanticity: what its points are, and what a fused width does."""

import json
import math
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

from featalign.bench.frontier import frontier, points, summary, table
from featalign.clients import evaluate
from featalign.dictionaries import train
from featalign.errors import BadOption
from featalign.fuse import solve
from featalign.plots.fusion import frontier as draw
from tests.fuse.conftest import network, problem_of

INPUTS = torch.randn(400, 12, generator=torch.Generator().manual_seed(1))
LATENTS = 40


@pytest.fixture(scope="module")
def problem():
    """Two clients of one hidden layer, with hardly trained transcoders."""
    clients = [network((12, 16, 5), bias=True, seed=seed) for seed in (0, 1)]
    found = problem_of(clients, INPUTS, evaluate=(INPUTS, INPUTS[:, :5].argmax(1)))
    (space,), held = found.graph.hidden, next(iter(found.activations))[1]
    trained = tuple(train(own[space.before], LATENTS, "transcoder", k=6, steps=40, seed=0) for own in held)
    return replace(found, transcoders={space.name: trained})


@pytest.fixture(scope="module")
def rows(problem):
    return list(points(problem, {6.0: problem.transcoders}, (1.0, 2.0, 6.0)))


def hidden(module):
    with torch.no_grad():
        return module[1](module[0](INPUTS))


def test_points_are_the_methods_and_pools_too_small_for_a_width_are_left_out(problem, rows):
    def value(module):
        return evaluate(module, problem.cohort.evaluation, problem.cohort.task)["accuracy"]

    by_point = {(row.network, row.pool, row.width): row for row in rows if row.network != "client"}
    assert by_point["fused", "neurons", 1.0].value == value(solve(problem, "zip", refit=True).module)
    assert by_point["average", "", 1.0].value == value(solve(problem, "vanilla").module)
    assert {(pool, width) for network, pool, width in by_point if network == "fused"} == {
        ("neurons", 1.0), ("neurons", 2.0), ("latents", 1.0), ("latents", 2.0), ("both", 1.0), ("both", 2.0),
        ("both", 6.0),
    }  # fmt: skip
    for row in rows:
        assert 0 <= row.null <= 1 and 0 <= row.entropy <= 1 and 0 < row.active <= row.alive <= 1
        assert -1 <= row.monosemanticity <= 1
    every = by_point["fused", "neurons", 2.0]  # all units of both clients, as the ensemble has them
    assert every.selectivity == pytest.approx(by_point["ensemble", "", 2.0].selectivity, abs=1e-6)


@pytest.mark.parametrize(
    "method, options", [("zip", {}), ("feature-zip", {}), ("feature-zip", {"neurons": True})], ids=str
)
def test_more_width_never_reconstructs_less(problem, method, options):
    fits = [
        solve(problem, method, refit=True, width=width, ridge=1e-6, head_ridge=1e-6, **options).fits[-1]
        for width in (0.5, 1.0, 1.5, 2.0)
    ]
    explained = [fit.explained_after for fit in fits]
    assert explained == sorted(explained) and explained[-1] > explained[0] + 0.01


def test_picked_latents_are_folded_and_fire_in_the_fused_network_as_in_the_client(problem):
    (space,), held = problem.graph.hidden, next(iter(problem.activations))[1]
    (bases,) = problem.transcoders.values()
    pool = torch.cat([basis.encode(own[space.before]) for basis, own in zip(bases, held)], dim=1)
    found = hidden(solve(problem, "feature-zip", width=2.0).module)
    assert found.shape[1] == 32
    apart = torch.cdist(found.T, pool[: len(found)].T).amin(1) / found.norm(dim=0).clamp_min(1e-6)
    assert float(apart.max()) < 1e-3


def test_a_pool_with_neurons_of_equal_clients_gives_the_network_back(problem):
    twins = problem_of([problem.clients[0]] * 2, INPUTS)
    (name,) = problem.transcoders
    twins = replace(twins, transcoders={name: (problem.transcoders[name][0],) * 2})
    fused = solve(twins, "feature-zip", neurons=True, width=2.0, head="mean-logits").module
    with torch.no_grad():
        wanted = problem.clients[0](INPUTS)
        assert float((fused(INPUTS) - wanted).norm() / wanted.norm()) < 0.05


def test_widths_are_refused_where_they_make_no_sense(problem):
    with pytest.raises(BadOption, match="width"):
        solve(problem, "zip", width=0.0)
    with pytest.raises(BadOption, match="pool of 32"):
        solve(problem, "zip", width=3.0)
    with pytest.raises(BadOption, match="seeds = 0"):
        frontier("digits", seeds=0)


def test_table_and_figure(rows):
    found = {"rows": [row.__dict__ for row in rows]}
    frame, shown = summary(found), table(found)
    assert shown.count("\n") == 2 + len(frame) and "| fused | latents, k = 6 | 2 |" in shown
    figure = draw(frame)
    assert {"client", "ensemble", "average"} <= {trace.text[0] for trace in figure.data if trace.text}
    assert sum(trace.mode == "lines+markers" for trace in figure.data) == 5  # both pools twice, one at width 6


def test_command(monkeypatch, problem):
    from featalign.bench.paper.lab import Lab
    from featalign.cli.bench import bench

    monkeypatch.setattr(Lab, "recipe", lambda self, whole=Lab.recipe: replace(whole(self), epochs=1))
    monkeypatch.setattr("featalign.bench.frontier.AUGMENTED", 600)
    monkeypatch.setattr("featalign.dictionaries.store.FEW_STEPS", 20)
    found = CliRunner().invoke(
        bench, ["frontier", "--dataset", "digits", "--k", "6", "--width", "1", "--seeds", "1", "--json", "--quiet"]
    )
    assert found.exit_code == 0, found.output
    rows = json.loads(found.stdout)["rows"]
    assert [row["pool"] for row in rows] == ["", "", "", "", "neurons", "latents", "both"]
    assert not any(math.isnan(row["selectivity"]) for row in rows)
