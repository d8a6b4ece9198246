"""OTFusion's experiments on digits: rows with the properties that any faithful run must have."""

import json

import pytest
import torch

from featalign.align import SpaceMap
from featalign.bench.paper import EXPERIMENTS, Lab, PaperResult, Row, run
from featalign.bench.paper.report import page
from featalign.clients import Cohort, MLPConfig, build, outputs
from featalign.data.tasks.distillation import Distillation, soft_targets
from featalign.errors import BadOption, CorruptFile, TaskError, UnknownName
from featalign.fuse import FusionProblem, solve
from featalign.spaces import moved, prune, rebuilt, trace

SETTINGS = {
    "transfer": {"points": 3, "every": 1},
    "splits": {"labels": (0,), "shares": (0.2,), "points": 2, "every": 1},
    "many": {"counts": (3,)},
    "probe": {"sizes": (10,)},
    "sinkhorn": {"eps": (0.01, 0.3)},
    "widths": {"points": 3, "every": 1},
    "pruning": {"shares": (0.9,), "criteria": ("l1",), "layers": False},
    "finetune": {"counts": (2,), "epochs": 2, "lr": 0.02},
    "distill": {"temperatures": (4.0,), "epochs": 2, "lr": 0.02},
}
LAB = Lab("digits", probe=60, augmented=100, epochs=3, progress=False)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder, found = tmp_path_factory.mktemp("results"), {}
    for name, options in SETTINGS.items():
        found[name] = run(name, LAB, 1, options, folder, f"featalign bench paper {name} --dataset digits")
    return folder, found


def values(result, part, row):
    return {r.x: r.accuracy for r in result.rows if r.part == part and r.row == row}


def test_every_experiment_is_tried():
    assert set(SETTINGS) == set(EXPERIMENTS)


@pytest.mark.parametrize("name", SETTINGS)
def test_rows_are_accuracies_and_files_read_back(name, results):
    folder, found = results
    result = found[name]
    assert all(0 <= row.accuracy <= 1 for row in result.rows)
    assert PaperResult.load(folder / f"{name}-digits.json").to_dict() == result.to_dict()
    assert (folder / f"{name}-digits.html").stat().st_size > 1000
    assert result.facts["seconds"] > 0 and result.config["seeds"] == 1


@pytest.mark.parametrize("name, parts", [("transfer", ("different initialisation", "same initialisation"))])
def test_the_ends_of_a_mixing_curve_are_the_parents(name, parts, results):
    result = results[1][name]
    for part in parts:
        ends = {row.row: row.accuracy for row in result.rows if row.part == part and row.row.startswith("parent")}
        for row in ("vanilla", "OT, activations", "OT, weights", "OT, activations, refitted"):
            curve = values(result, part, row)
            assert curve[1.0] == ends["parent A"] and curve[0.0] == ends["parent B"], row


def test_a_client_survives_in_a_wider_server_by_the_corrected_maps_only(results):
    result = results[1]["widths"]
    part, parent = result.rows[0].part, result.rows[0].accuracy
    assert values(result, part, "OT, activations")[1.0] == pytest.approx(parent, abs=0.01)
    both = [values(result, part, row)[0.5] for row in ("OT, activations", "OT, activations, published rule")]
    assert both[0] != both[1]


def test_exact_transport_beside_entropic(results):
    result = results[1]["sinkhorn"]
    rows = {(row.row, row.x) for row in result.rows}
    assert {("exact", None), ("Sinkhorn", 0.01), ("Sinkhorn", 0.3)} <= rows


def test_training_after_fusion_starts_from_the_fused_network(results):
    result = results[1]["finetune"]
    for part in ("2 networks",):
        for row in ("best parent", "vanilla", "OT, activations", "zip"):
            curve = values(result, part, row)
            assert list(curve) == [0, 1, 2]
    distilled = results[1]["distill"]
    assert values(distilled, "temperature 4", "random")[2] > values(distilled, "temperature 4", "random")[0]


@pytest.mark.parametrize("criterion", ["l1", "l2", "random"])
def test_pruned_networks_have_the_width_and_the_strongest_units(criterion):
    module = build(MLPConfig(12, (10, 8), 3, bias=True)).eval()
    x = torch.randn(20, 12)
    graph = trace(module, x)
    first = graph.hidden[0].name
    small = prune(module, graph, 0.7, criterion)
    assert [space.size for space in trace(small, x).hidden] == [3, 2]
    one = prune(module, graph, 0.7, criterion, [first])
    assert [space.size for space in trace(one, x).hidden] == [3, 8]
    assert torch.allclose(outputs(prune(module, graph, 0.0, criterion), x), outputs(module, x), atol=1e-6)
    if criterion != "random":
        order = 1 if criterion == "l1" else 2
        weight = next(p for p in module.parameters() if p.shape in ((10, 12), (12, 10)))
        rows = weight if weight.shape == (10, 12) else weight.T
        kept = next(p for p in one.parameters() if p.shape in ((3, 12), (12, 3)))
        kept = kept if kept.shape == (3, 12) else kept.T
        strongest = rows.norm(order, dim=1).topk(3).indices.sort().values
        assert torch.equal(kept, rows[strongest])


def test_units_that_nothing_reads_are_pruned_without_a_trace():
    module = build(MLPConfig(12, (10,), 3, bias=True)).eval()
    x = torch.randn(20, 12)
    graph = trace(module, x)
    silent = {name: t.clone() for name, t in module.state_dict().items()}
    space = graph.hidden[0]
    for axis in space.writers:
        silent[axis.parameter].movedim(axis.dim, 0)[4:] = 0
    module.load_state_dict(silent)
    small = prune(module, graph, 0.6, "l2")
    assert torch.allclose(outputs(small, x), outputs(module, x), atol=1e-6)


@pytest.mark.parametrize("share, spaces, criterion", [(1.0, None, "l1"), (0.5, ["nothing"], "l1"), (0.5, None, "l0")])
def test_bad_pruning_is_named(share, spaces, criterion):
    module = build(MLPConfig(4, (3,), 2)).eval()
    with pytest.raises((BadOption, UnknownName)):
        prune(module, trace(module, torch.randn(2, 4)), share, criterion, spaces)


def test_corrected_maps_are_exact_on_duplicated_neurons_and_published_ones_are_not():
    small, x = build(MLPConfig(6, (5, 4), 3)).eval(), torch.randn(60, 6)
    graph = trace(small, x)
    maps = {}
    for space in graph.hidden:
        copies = torch.eye(space.size, dtype=torch.float64).repeat_interleave(2, 0)
        maps[space.name] = SpaceMap(copies, copies.T / 2, space.symmetry)
    wide = rebuilt(small, moved(small, graph, maps))
    assert torch.allclose(outputs(wide, x), outputs(small, x), atol=1e-5)
    problem = FusionProblem(Cohort.of([small, wide], x, task="regression"), (1.0, 0.0))
    error = {}
    for kind in ("corrected", "published"):
        fused = solve(problem, "ot-acts", maps=kind).module
        error[kind] = float((outputs(fused, x) - outputs(small, x)).abs().max() / outputs(small, x).abs().max())
    assert error["corrected"] < 1e-5 and error["published"] > 0.5


def test_distillation_is_cross_entropy_without_a_teacher_and_zero_at_the_teacher():
    logits, labels = torch.randn(7, 4), torch.arange(7) % 4
    targets = soft_targets(torch.randn(7, 4), labels)
    alone = Distillation(3.0, 0.0).loss(logits, targets)
    assert torch.allclose(alone, torch.nn.functional.cross_entropy(logits, labels, reduction="none"))
    assert Distillation(3.0, 1.0).loss(logits, soft_targets(logits + 2, labels)).abs().max() < 1e-5
    with pytest.raises(TaskError):
        Distillation().check(logits, labels)
    with pytest.raises(BadOption):
        Distillation(temperature=0)


def test_intervals_are_students():
    rows = tuple(Row(seed, "p", "r", 0.5, value) for seed, value in enumerate((0.90, 0.92, 0.94)))
    frame = PaperResult("transfer", "", {"dataset": "digits"}, rows).to_frame()
    assert frame["mean"].item() == pytest.approx(92) and frame["interval"].item() == pytest.approx(
        4.303 * 2 / 3**0.5, rel=1e-3
    )


def test_the_page_is_built_from_the_files(results):
    folder, _ = results
    text = page(folder)
    assert all(f"bench paper {name} --dataset digits" in text for name in SETTINGS)
    assert "not run" not in text and "93.11" not in text  # which is MNIST's
    (folder / "transfer-digits.json").rename(folder / "other.txt")
    assert "not run" in page(folder)
    (folder / "broken.json").write_text(json.dumps({"schema": 99}))
    with pytest.raises(CorruptFile):
        page(folder)


def test_the_command_prints_a_section_and_the_page(tmp_path):
    from typer.testing import CliRunner

    from featalign.cli import app

    words = ["bench", "paper", "sinkhorn", "--dataset", "digits", "--seeds", "1", "--epochs", "1", "--quiet"]
    words += ["--augmented", "0", "--option", "eps=0.1", "--out", str(tmp_path)]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0 and "Section S4" in done.stdout and "| exact |" in done.stdout, done.stdout
    again = CliRunner().invoke(app, ["bench", "paper", "report", str(tmp_path)])
    assert "featalign bench paper sinkhorn --dataset digits --option eps=0.1 --epochs 1" in again.stdout
    assert isinstance(CliRunner().invoke(app, ["bench", "paper", "report"]).exception, BadOption)
    bad = ["bench", "paper", "sinkhorn", "--option", "width=3"]
    assert isinstance(CliRunner().invoke(app, bad).exception, BadOption)
    assert isinstance(CliRunner().invoke(app, ["bench", "paper", "nothing"]).exception, UnknownName)
