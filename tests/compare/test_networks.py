"""Every kind of network that people bring goes through a cohort, every default method and back to its own layout."""

from functools import cache

import pytest
import torch

import featalign as fa
from featalign.clients import Cohort
from featalign.data import unwrap
from featalign.errors import SpaceMismatch, TraceError
from featalign.fuse import METHODS, FusionProblem, available, solve
from featalign.fuse.needs import TRAINED
from featalign.spaces import Symmetry, moved, rebuilt, trace
from featalign.spaces.check import random_transform

from .networks import NETWORKS, bridge, tokens


@cache
def case_of(name):
    return NETWORKS[name]()


@cache
def clients_of(name):
    case = case_of(name)
    return case.make(0), case.make(1)


def cohort_of(name, modules):
    case = case_of(name)
    return Cohort.of(modules, case.probe, case.evaluate, case.task)


def outputs(module, cohort):
    """Outputs of the tokens that count."""
    found = []
    with torch.no_grad():
        for batch in cohort.probe:
            out = unwrap(batch.run(module))
            kept = batch.mask is not None and out.shape[:2] == batch.mask.shape
            found.append(out[batch.mask] if kept else out)
    return torch.cat(found)


def change(module, cohort, wanted):
    found = outputs(module, cohort)
    return float((found - wanted).abs().max() / wanted.abs().max())


def defaults(problem):
    """Methods that the cohort allows and that need no dictionaries, with and without refit."""
    for name, reason in available(problem).items():
        method = METHODS[name]
        if reason is None and method.default and method.exact and not TRAINED.keys() & set(method.needs):
            yield from ((name, refit) for refit in method.stages)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_fused_with_itself_comes_back_in_its_own_layout(name):
    client = clients_of(name)[0]
    cohort = cohort_of(name, [client, client])
    assert cohort.task.name == case_of(name).expected
    assert cohort.graphs[0].hidden
    problem, wanted, ran = FusionProblem(cohort), outputs(client, cohort), []
    for method, refit in defaults(problem):
        back = cohort.restore(solve(problem, method, refit=refit).module)
        assert type(back) is type(client)
        assert back.state_dict().keys() == client.state_dict().keys()
        assert change(back, cohort, wanted) < 1e-4, (method, refit)
        ran.append(method)
    assert {"vanilla", "ot-acts", "ot-wts"} <= set(ran)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_permuted_twin_comes_back_by_activations(name):
    client = clients_of(name)[0]
    twin = turned(client, cohort_of(name, [client]).example)
    cohort = cohort_of(name, [twin, client])
    wanted = outputs(client, cohort)
    assert change(twin, cohort, wanted) < 1e-4
    problem = FusionProblem(cohort)
    assert change(cohort.restore(solve(problem, "vanilla", repair=False).module), cohort, wanted) > 1e-2
    for refit in (False, True):
        back = cohort.restore(solve(problem, "ot-acts", refit=refit).module)
        assert change(back, cohort, wanted) < 1e-4, refit


@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in ("regressor", "one-logit")])
def test_a_rotated_twin_comes_back_by_procrustes(name):
    client = clients_of(name)[0]
    alone = cohort_of(name, [client])
    if available(FusionProblem(alone))["procrustes"] is not None:
        pytest.skip("no space of it may be rotated")
    twin = alone.restore(turned(alone.modules[0], alone.example, rotated=True))
    cohort = cohort_of(name, [twin, client])
    wanted = outputs(client, cohort)
    assert change(twin, cohort, wanted) < 1e-4
    back = cohort.restore(solve(FusionProblem(cohort), "procrustes").module)
    assert change(back, cohort, wanted) < 1e-4


def turned(module, example, rotated=False):
    """The same function with units in another order; spaces that may be rotated are, where that is asked for."""
    graph, generator = trace(module, example.example), torch.Generator().manual_seed(4)
    kinds = {
        space.name: Symmetry.ORTHOGONAL
        if rotated and space.symmetry in (Symmetry.ORTHOGONAL, Symmetry.LINEAR)
        else Symmetry.PERMUTATION
        for space in graph.hidden
    }
    maps = {space.name: random_transform(space.size, kinds[space.name], generator) for space in graph.hidden}
    return rebuilt(module, moved(module, graph, maps)).eval()


@pytest.mark.parametrize("name", NETWORKS)
def test_two_different_networks_are_fused_by_every_default_method(name):
    cohort = cohort_of(name, clients_of(name))
    problem = FusionProblem(cohort)
    for method, refit in defaults(problem):
        fused = solve(problem, method, refit=refit).module
        try:
            back = cohort.restore(fused)
        except SpaceMismatch as error:  # a stream that is projected may be written to in every direction
            assert method == "zip" and "keep it in canonical form" in str(error)
            back = fused
        assert torch.isfinite(outputs(back, cohort)).all(), (method, refit)


@pytest.mark.parametrize("evidence", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", NETWORKS)
def test_compare_goes_from_end_to_end_with_table_and_page(name, evidence, tmp_path):
    case = case_of(name)
    methods = ["vanilla", "ot-acts"]
    result = fa.compare(
        clients_of(name),
        case.probe,
        case.evaluate,
        case.task,
        methods,
        curve=0,
        evidence=evidence,
        out=tmp_path / "run",
        progress=False,
    )
    scores = result.frames["scores"]
    metric = cohort_of(name, clients_of(name)[:1]).task.metric
    shown = scores[scores.metric == metric.name]
    assert {"client-A", "client-B", "ensemble"} <= set(shown.row) and set(methods) <= set(shown.method)
    assert shown.value.notna().all()
    page = (tmp_path / "run" / "report.html").read_text()
    assert metric.name in page and "ot-acts" in page
    assert fa.load(tmp_path / "run").to_frame().equals(result.to_frame())


def test_a_wrapper_that_renames_its_parameters_is_refused_in_one_line():
    with pytest.raises(TraceError, match=r"TransformerBridge.*pass the network that it wraps") as error:
        Cohort.of([bridge(0), bridge(1)], tokens())
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["gpt2", "conv1d", "one-logit"])
def test_fusion_does_not_depend_on_the_batch(name, monkeypatch):
    """Padded tokens of one batch must not be taken for those of another."""
    methods, found = ("ot-acts", "zip"), []
    for weigh in (2**40, 1):
        monkeypatch.setattr("featalign.spaces.capture.BATCH_BYTES", weigh)
        cohort = cohort_of(name, clients_of(name))
        problem = FusionProblem(cohort)
        assert problem.activations.batch_size == (2048 if weigh > 1 else 1)
        found.append([outputs(solve(problem, method, refit=True).module, cohort) for method in methods])
    for whole, single in zip(*found):
        assert (whole - single).abs().max() < 1e-3 * whole.abs().max()
