"""Published methods beside ours: what each must give back, whom it refuses, and what sets it apart."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from featalign.align.learned import SWEEPS, _relaxed
from featalign.clients import Cohort
from featalign.errors import ArchitectureMismatch, BadOption, SpaceMismatch
from featalign.fuse import METHODS, FusionProblem, available, fuse, propose, solve
from featalign.fuse.methods.interpolation import clustered, paired
from featalign.fuse.methods.zipit import zipped
from featalign.spaces.check import output_change

from .conftest import duplicated, network, permuted
from .modules import shaken
from .test_self_fusion import inputs, outputs, problem_of, twin_of

GROUPED = ("zipit", "neuron-interpolation", "universe", "regmean", "merge-many")
NETWORKS = ("one-layer", "residual", "attention", "batch-norm", "two-convs", "bottleneck")


def change(problem: FusionProblem, method: str, refit: bool, **options: object) -> float:
    fresh = inputs(60, seed=2)
    want = outputs(problem.clients[problem.reference], fresh)
    got = outputs(solve(problem, method, refit=refit, repair=True, **options).module, fresh)
    return float((got - want).abs().max() / want.abs().max())


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("method", GROUPED)
def test_a_network_and_its_permuted_twin_come_back(method: str, name: str) -> None:
    module = shaken(name)
    for problem in (problem_of(module, copy.deepcopy(module)), problem_of(twin_of(module), module)):
        for stage in METHODS[method].stages:
            assert change(problem, method, stage) < 2e-5, (stage, method)


@pytest.mark.parametrize("method", [*GROUPED, "learned", "slerp"])
def test_four_clients_one_of_them_three_times(method: str) -> None:
    module = network(bias=True)
    twins = [permuted(module, seed) for seed in range(3)] if method != "slerp" else [copy.deepcopy(module)] * 3
    problem = FusionProblem(Cohort.of([*twins, module], inputs(), task="classification"))
    options = {"updates": 2, "start": "ot-acts"} if method == "learned" else {}
    assert change(problem, method, METHODS[method].stages[-1], **options) < 2e-5


def test_cca_merge_returns_a_permuted_twin() -> None:
    module = network((12, 10, 8, 5), bias=True)  # no more units than there are directions in what they see
    assert change(problem_of(permuted(module), module), "cca-merge", False) < 1e-3
    alignment = propose(
        problem_of(network((12, 10, 8, 5), bias=True, seed=1), module), "cca-merge", {"gamma": 1e-4}
    ).alignments[0]
    for found in alignment.maps.values():  # invertible maps with their inverses, no rotations
        eye = torch.eye(len(found.out), dtype=torch.float64)
        assert torch.allclose(found.out @ found.into, eye, atol=1e-6)
        assert not torch.allclose(found.out @ found.out.T, eye, atol=1e-2)


def test_soft_maps_change_the_client_and_projected_ones_do_not() -> None:
    problem = problem_of(shaken("bottleneck"), shaken("bottleneck", seed=5)).mixed((1.0, 0.0))
    want = outputs(problem.clients[0], inputs())
    soft, exact = (outputs(solve(problem, "sinkhorn", project=p).module, inputs()) for p in (False, True))
    assert float((soft - want).abs().max() / want.abs().max()) > 0.1
    assert float((exact - want).abs().max() / want.abs().max()) < 1e-4


def test_learned_maps_are_exact_symmetries_and_better_than_where_they_began() -> None:
    problem = FusionProblem(Cohort.of([network(seed=s, bias=True) for s in (0, 1)], inputs(), task="classification"))
    found = propose(problem, "learned", METHODS["learned"].bind({"updates": 60, "lr": 0.1, "batch": 60}, "learned"))
    measured = found.notes["divergence"]["A"]
    assert measured["after"] < 0.9 * measured["before"]
    alone = solve(problem.mixed((1.0, 0.0)), "learned", updates=60, lr=0.1, batch=60).module
    want, got = outputs(problem.clients[0], inputs()), outputs(alone, inputs())
    assert float((got - want).abs().max() / want.abs().max()) < 1e-5


@pytest.mark.parametrize("name", ["attention", "residual-norm", "bottleneck"])
def test_learned_maps_of_streams_and_heads_leave_the_client_alone(name: str) -> None:
    problem = problem_of(shaken(name), shaken(name, seed=5))
    moved = solve(problem.mixed((1.0, 0.0)), "learned", updates=5, lr=0.05).module
    want, got = outputs(problem.clients[0], inputs()), outputs(moved, inputs())
    assert float((got - want).abs().max() / want.abs().max()) < 1e-4


def test_learning_starts_from_exact_maps_alone() -> None:
    problem = problem_of(shaken("one-layer"), shaken("one-layer", seed=1))
    with pytest.raises(SpaceMismatch, match="neither a permutation nor a rotation"):
        solve(problem, "learned", start="sinkhorn", updates=1)


def test_zipit_merges_the_most_alike_across_and_within() -> None:
    alike = torch.eye(4, dtype=torch.float64)
    for a, b, value in ((0, 1, 0.9), (1, 2, 0.8), (0, 2, 0.7), (2, 3, 0.5), (0, 3, 0.1), (1, 3, 0.2)):
        alike[a, b] = alike[b, a] = value
    assert zipped(alike, [0, 2, 4], 2, repeat=1.0, within=1.0).tolist() == [0, 0, 0, 1]
    assert zipped(alike, [0, 2, 4], 2, within=0.0).tolist() == [0, 1, 1, 0]  # across clients alone


def test_partial_zip_keeps_later_layers_apart() -> None:
    clients = [network((12, 16, 8, 6, 5), bias=True, seed=s) for s in range(2)]
    problem = FusionProblem(Cohort.of(clients, inputs(), task="classification"))
    apart = solve(problem, "zipit", partial=0.0).module
    mean = (outputs(clients[0], inputs()) + outputs(clients[1], inputs())) / 2
    assert torch.allclose(outputs(apart, inputs()), mean, atol=1e-5)
    half = solve(problem, "zipit", partial=1 / 3).module
    assert [part.out_features for part in half if isinstance(part, nn.Linear)] == [16, 16, 12, 5]
    with pytest.raises(BadOption, match="a norm would mix"):
        solve(problem_of(shaken("residual-norm"), shaken("residual-norm", seed=1)), "zipit", partial=0.0)


def test_kmeans_lowers_the_distance_to_the_centres() -> None:
    a = torch.randn(200, 12, generator=torch.Generator().manual_seed(0)).double()
    a[:, 6:] = a[:, :6].flip(1) + 0.1 * a[:, 6:]
    second, weights = a.T @ a / len(a), torch.ones(12).double()

    def spread(labels: torch.Tensor) -> float:
        centres = torch.stack([a[:, labels == g].mean(1) for g in range(6)], 1)
        return float((a - centres[:, labels]).pow(2).sum())

    pairs = paired(second, [0, 6, 12], 1)
    assert pairs.tolist() == [5, 4, 3, 2, 1, 0, 0, 1, 2, 3, 4, 5]
    shuffled = torch.tensor([0, 1, 2, 3, 4, 5] * 2)
    assert spread(clustered(second, shuffled, 6, weights)) < spread(shuffled)
    assert clustered(second, pairs, 6, weights).tolist() == pairs.tolist()


def test_grouping_takes_clients_of_other_widths() -> None:
    module = network((12, 6, 5))
    problem = FusionProblem(Cohort.of([duplicated(module, 2), module], inputs(), task="classification"))
    for method, options in (("neuron-interpolation", {}), ("zipit", {"repeat": 1.0}), ("regmean", {})):
        assert change(problem, method, True, **options) < 1e-3, method


def test_a_universe_does_not_depend_on_the_order_of_clients() -> None:
    clients = [network(seed=s, bias=True) for s in range(3)]
    fused = []
    for order in ((0, 1, 2), (1, 0, 2)):
        cohort = Cohort.of([clients[k] for k in order], inputs(), task="classification")
        fused.append(outputs(solve(FusionProblem(cohort), "universe").module, inputs()))
    assert torch.allclose(*fused, atol=1e-5)


def test_regmean_is_the_least_squares_layer_of_all_clients() -> None:
    clients = [nn.Sequential(nn.Linear(12, 5, bias=False)) for _ in range(2)]
    own = [inputs(80, seed=s) * torch.linspace(0.5, 2.0, 12) ** (s - 1.5) for s in (1, 2)]
    cohort = Cohort.of(clients, inputs(), task="regression", data=own)
    fused = solve(FusionProblem(cohort), "regmean", alpha=1.0).module
    x = torch.cat(own).double()
    y = torch.cat([client(rows).detach() for client, rows in zip(clients, own)]).double()
    assert torch.allclose(fused[0].weight.double().T, torch.linalg.lstsq(x, y).solution, atol=1e-4)
    plain = solve(FusionProblem(cohort), "regmean", alpha=0.0).module
    assert not torch.allclose(plain[0].weight, fused[0].weight, atol=1e-2)


def test_regmean_wants_layers_that_are_seen_at_work() -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w, self.v = nn.Parameter(torch.randn(9, 12)), nn.Parameter(torch.randn(5, 9))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x @ self.w.T).relu() @ self.v.T

    problem = FusionProblem(Cohort.of([Bare(), Bare()], inputs(), task="classification"))
    assert "no Gram matrix" in str(available(problem)["regmean"])


def ancestors() -> tuple[nn.Module, list[nn.Module]]:
    """A network and two that differ from it in a few weights each."""
    base = network(bias=True)
    clients = []
    for k in range(2):
        client = copy.deepcopy(base)
        with torch.no_grad():
            client[0].weight[0, k] += 1.0  # type: ignore[index,union-attr]
            client[0].weight[1, 0] += 0.5 if k else -0.3  # type: ignore[index,union-attr]
        clients.append(client)
    return base, clients


def test_baselines_for_a_common_start() -> None:
    base, clients = ancestors()
    cohort = Cohort.of(clients, inputs(), task="classification", base=base)
    problem = FusionProblem(cohort)
    summed = solve(problem, "task-arithmetic", scale=1.0).module[0].weight - base[0].weight  # type: ignore[index]
    assert torch.allclose(summed[0, :2], torch.ones(2), atol=1e-6) and abs(float(summed[1, 0]) - 0.2) < 1e-6
    merged = solve(problem, "ties", density=0.02).module[0].weight - base[0].weight  # type: ignore[index]
    assert torch.allclose(merged[0, :2], torch.ones(2), atol=1e-6)  # nobody else changed these
    assert abs(float(merged[1, 0]) - 0.5) < 1e-6  # the heavier sign alone
    average = solve(problem, "task-arithmetic", scale=0.5).module
    assert output_change([outputs(average, inputs())], [outputs(solve(problem, "vanilla").module, inputs())]) < 1e-5


def test_slerp_keeps_lengths() -> None:
    clients = [nn.Sequential(nn.Linear(12, 5, bias=False)) for _ in range(2)]
    problem = FusionProblem(Cohort.of(clients, inputs(), task="regression"))
    lengths = [float(client[0].weight.norm()) for client in clients]
    fused = solve(problem, "slerp").module[0].weight
    assert abs(float(fused.norm()) - sum(lengths) / 2) < 1e-5
    assert float(solve(problem, "vanilla").module[0].weight.norm()) < 0.9 * float(fused.norm())


def test_without_a_common_start_they_refuse() -> None:
    base, clients = ancestors()
    problem = FusionProblem(Cohort.of(clients, inputs(), task="classification"))
    reasons = available(problem)
    for method in ("ties", "task-arithmetic"):
        assert "common start" in str(reasons[method])
        with pytest.raises(BadOption, match="base="):
            solve(problem, method)
    with pytest.raises(ArchitectureMismatch, match="base"):
        Cohort.of(clients, inputs(), task="classification", base=network((12, 7, 5)))
    with pytest.raises(BadOption, match="pass the module"):
        Cohort.of(clients, inputs(), task="classification", base="weights.pt")
    result = fuse(clients, inputs(), "ties", task="classification", base=base, density=0.02)
    assert result.method == "ties"


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("zipit", {"partial": 1.5}), ("neuron-interpolation", {"grouping": "nearest"}), ("universe", {"cost": "sign"}),
        ("merge-many", {"sweeps": 0}), ("learned", {"lr": 0.0}), ("learned", {"updates": -1}),
        ("regmean", {"alpha": 2.0}), ("cca-merge", {"gamma": 0.0}), ("neuron-interpolation", {"importance": "rank"}),
    ],
)  # fmt: skip
def test_options_are_refused_in_one_line(method: str, options: dict[str, object]) -> None:
    problem = problem_of(shaken("one-layer"), shaken("one-layer", seed=1))
    with pytest.raises(BadOption) as caught:
        solve(problem, method, **options)
    assert "\n" not in str(caught.value) and next(iter(options)) in str(caught.value)


def test_widths_must_agree_where_it_is_said() -> None:
    problem = FusionProblem(Cohort.of([network((12, 6, 5)), network((12, 8, 5))], inputs(), task="classification"))
    reasons: Callable[[str], object] = available(problem).get
    for method in ("learned", "merge-many", "universe", "cca-merge", "slerp"):
        assert "equal widths" in str(reasons(method)), method


def test_the_relaxation_is_that_of_sinkhorns_sweeps_in_logarithms() -> None:
    scores = 6 * torch.randn(9, 9, generator=torch.Generator().manual_seed(0)).double()
    wanted = scores
    for _ in range(SWEEPS):
        wanted = wanted - wanted.logsumexp(1, keepdim=True)
        wanted = wanted - wanted.logsumexp(0, keepdim=True)
    assert torch.allclose(_relaxed(scores), wanted.exp(), atol=1e-10)
    assert torch.allclose(_relaxed(scores + 800), wanted.exp(), atol=1e-10)
