"""Methods for one linear code: they take any such network, and return what fusing with itself or a twin must give."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from featalign.clients import Cohort
from featalign.dictionaries import train_many
from featalign.errors import BadOption
from featalign.fuse import METHODS, FusionProblem, available, solve
from featalign.studies.toy.run import problem_of
from featalign.toy import Features, Schedule, ToyConfig, ToyModels, train

ENCODERS = ("feature-reencode", "feature-union", "joint-dictionary", "random-dictionary")
TWINS = ("vanilla", "ot-acts", "procrustes", "procrustes-wts", "linear", "cca", "pca", "feature-project")


@pytest.fixture(scope="module")
def law() -> Features:
    return Features.uniform(12, 0.06)


@pytest.fixture(scope="module")
def tied(law):
    return clients_of(law, ToyConfig(12, 5))


@pytest.fixture(scope="module", params=["tied", "free"])
def trained(request, law, tied):
    return tied if request.param == "tied" else clients_of(law, ToyConfig(12, 5, tied=False), seeds=(1, 2))


def clients_of(law: Features, config: ToyConfig, seeds: tuple[int, int] = (0, 1)) -> tuple:
    """Two trained clients, their inputs and dictionaries."""
    schedule = Schedule(1000, 256, 8e-3)
    models = ToyModels.stack([train(config, law, [seed], schedule, data_seed=seed) for seed in seeds])
    x = law.sample(4096, torch.Generator().manual_seed(5))
    found = train_many([models[c].hidden(x)[0] for c in (0, 1)], "topk", (0,), [{}, {}], k=2, width=16, steps=500)
    return models, x, [each[0] for each in found]


def test_a_network_fused_with_itself_or_a_permuted_twin_comes_back(trained) -> None:
    models, x, bases = trained
    own = float(models[0].loss(x))
    same = problem_of(models[[0, 0]], [x, x], x, [bases[0], bases[0]])
    for name in TWINS:
        fused = ToyModels.of([solve(same, name).module])
        assert torch.allclose(fused.encoder, models.encoder[:1], atol=1e-3), name
    for name in ("feature-reencode", "feature-union", "joint-dictionary"):
        assert float(ToyModels.of([solve(same, name).module]).loss(x)) < 1.3 * own, name
    order = torch.tensor([3, 0, 4, 1, 2])
    twin = ToyModels(models.config, models.encoder[:1, order], models.decoder[:1][:, :, order], models.bias[:1])
    pair = problem_of(ToyModels.stack([models[0], twin]), [x, x], x, bases)
    assert torch.allclose(ToyModels.of([solve(pair, "ot-acts").module]).encoder, models.encoder[:1], atol=1e-5)


def test_only_learned_features_move_knowledge(tied) -> None:
    models, x, bases = tied
    problem = problem_of(models, [x, x], x, bases)
    loss = {name: float(ToyModels.of([solve(problem, name).module]).loss(x)) for name in (*ENCODERS, "procrustes")}
    for name in ("feature-reencode", "feature-union", "joint-dictionary"):
        assert loss[name] < 0.8 * min(loss["procrustes"], loss["random-dictionary"]), name


def test_the_fused_network_stands_as_proposed_whatever_is_asked_of_it(trained) -> None:
    models, x, bases = trained
    problem = problem_of(models, [x, x], x, bases)
    plain, asked = solve(problem, "feature-reencode"), solve(problem, "feature-reencode", refit=True, repair=True)
    assert all(torch.equal(a, b) for a, b in zip(plain.module.parameters(), asked.module.parameters()))
    assert not asked.refitted and not asked.repaired and (1, "encoder") in asked.matches
    mostly = solve(problem.mixed((1.0, 0.0)), "feature-reencode").module
    assert torch.allclose(ToyModels.of([mostly]).encoder, models.encoder[:1], atol=1e-5)


def test_a_wider_union_is_wider_and_a_narrower_one_is_refused(trained) -> None:
    models, x, bases = trained
    problem = problem_of(models, [x, x], x, bases)
    assert ToyModels.of([solve(problem, "feature-union", width=7).module]).encoder.shape == (1, 7, 12)
    with pytest.raises(BadOption, match="at least the reference's 5"):
        solve(problem, "feature-union", width=4)


def test_any_network_with_one_linear_code_is_taken(law) -> None:
    """A regressor with biases, whose readout is as wide as it likes."""
    x = law.sample(2048, torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    client = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))
    order = torch.randperm(8)
    twin = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))
    twin.load_state_dict(
        {
            "0.weight": client[0].weight[order], "0.bias": client[0].bias[order],
            "2.weight": client[2].weight[:, order], "2.bias": client[2].bias,
        }
    )  # fmt: skip
    cohort = Cohort.of([client, twin], probe=x, evaluate=(x, client(x).detach()), data=[x, x])
    posts = [module[:2](x).detach() for module in (client, twin)]
    found = train_many(posts, "topk", (0,), [{}, {}], k=4, width=32, steps=500)
    space = cohort.graphs[0].hidden[0].name
    problem = FusionProblem(cohort, dictionaries={space: tuple(each[0] for each in found)})
    assert all(available(problem)[name] is None for name in ENCODERS)
    variance = float(client(x).detach().var(0).sum())
    for name in ("feature-reencode", "feature-union"):
        error = float((solve(problem, name).module(x) - client(x)).detach().pow(2).sum(1).mean())
        assert error < 0.25 * variance, name


def test_other_networks_are_told_why_not(law) -> None:
    x = law.sample(256, torch.Generator().manual_seed(1))
    networks = {
        "here are 2": nn.Sequential(nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)),
        "network's inputs": nn.Sequential(nn.Tanh(), nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 3)),
        "than one linear layer": nn.Sequential(nn.Linear(12, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)),
    }
    for reason, network in networks.items():
        problem = FusionProblem(Cohort.of([network, network], probe=x))
        assert reason in (available(problem)["feature-reencode"] or ""), reason
        with pytest.raises(BadOption, match="possible:"):
            solve(problem, "feature-reencode")
    assert not METHODS["random-dictionary"].default and METHODS["feature-reencode"].default


def test_a_tied_readout_is_no_reader_that_a_pool_could_be_chosen_by(tied) -> None:
    """What reads the code of a tied model runs in no module, so that `zip` says so instead of failing inside."""
    models, x, bases = tied
    problem = problem_of(models, [x, x], x, bases)
    assert "seen at no module" in available(problem)["zip"]
    with pytest.raises(BadOption, match="not possible here"):
        solve(problem, "zip")
