import numpy as np
import pytest

from featalign.data import load
from featalign.errors import BadOption
from featalign.federated import SELECTIONS, WEIGHINGS
from featalign.federated.avot import RULES, avot_experiment, avot_rates, coefficients, deliverable
from featalign.federated.avot_problems import mlp_classification
from featalign.federated.weigh import importance_of
from featalign.plots.transport import avot as figure
from featalign.plots.transport import avot_rates as rates_figure
from featalign.transport import AvotWeights

LAWS = [
    ("restricted", {"k": 2, "subsets": 40}),
    ("groups", {"size": 3, "stride": 4}),
    ("k-of-n", {"k": 2}),
    ("all", {}),
]


def expected(weigher, law, users):
    """What each user's update counts for on average."""
    total = np.zeros(users)
    for members, chance in zip(law.subsets, law.q):
        found = weigher.weights(members)
        total[members] += chance * found.scale * found.mixing
    return total


@pytest.mark.parametrize("name, options", LAWS)
def test_fedavot_and_horvitz_thompson_are_unbiased_where_the_law_can_deliver(name, options):
    users = 15
    law = SELECTIONS[name](users, **options)
    p = deliverable(law, 0) if name != "all" else np.random.default_rng(0).dirichlet(np.ones(users))
    for kind in ("fedavot", "horvitz-thompson"):
        weigher = WEIGHINGS[kind](p, np.ones(users, dtype=int), law)
        assert np.abs(expected(weigher, law, users) - p).sum() < 1e-9
    for members in law.subsets:
        mixing = WEIGHINGS["fedavot"](p, np.ones(users, dtype=int), law).weights(members)
        assert mixing.scale == 1 and abs(mixing.mixing.sum() - 1) < 1e-12 and (mixing.mixing >= 0).all()


def test_infeasible_importance_misses_by_twice_what_cannot_flow():
    users = 15
    law = SELECTIONS["restricted"](users, k=2, subsets=40)
    p = importance_of("uniform", np.ones(users))
    weigher = WEIGHINGS["fedavot"](p, np.ones(users, dtype=int), law)
    facts = weigher.facts()
    assert not facts["feasible"]
    missed = np.abs(expected(weigher, law, users) - p).sum()
    assert missed == pytest.approx(2 * (1 - facts["deliverable_mass"]), abs=1e-6)
    curves = avot_experiment(users=8, subsets=10, rounds=20, seeds=1, importance="uniform")
    assert next(iter(curves.to_dict())) == "feasibility"


def test_rates_of_presence_are_what_is_drawn():
    for name, options in [*LAWS, ("drop-outs", {"k": 6, "rate": 0.4}), ("k-of-n", {"k": 7})]:
        law, rng = SELECTIONS[name](15, **options), np.random.default_rng(0)
        seen = np.zeros(15)
        for _ in range(4000):
            draw = law.draw(rng)
            assert set(draw.present) <= set(draw.asked)
            seen[draw.present] += 1
        assert np.abs(seen / 4000 - law.rates).max() < 0.04, name
        if law.q is not None:
            assert law.q.sum() == pytest.approx(1)


def test_uniform_mean_keeps_a_floor_that_fedavot_does_not():
    curves = avot_experiment(users=12, subsets=20, rounds=1500, steps=(0.2, 0.02), seeds=2)
    floors = curves.floors
    assert floors["fedavot"][-1] < 0.4 * floors["fedavot"][0]
    assert floors["fedavot_online"][-1] < 0.4 * floors["fedavot_online"][0]
    for biased in ("uniform", "renormalised", "unnormalised"):
        assert floors[biased][-1] > 0.5 * floors[biased][0]
        assert floors["fedavot"][-1] < 0.5 * floors[biased][-1]
    assert floors["full"].max() < floors["fedavot"].min()
    assert len(figure(curves, RULES).data) == 2 * len(RULES)


def test_softmax_regression_shows_the_same_with_coordinated_groups():
    curves = avot_experiment("softmax", "coordinated", users=12, rounds=1500, steps=(0.5, 0.1), seeds=1)
    floors = curves.floors
    assert floors["fedavot"][-1] < 0.6 * floors["uniform"][-1]
    assert (floors["full"] >= -1e-9).all()
    with pytest.raises(BadOption, match="softmax"):
        avot_experiment("ridge")


def test_a_falling_step_reaches_the_optimum_at_a_rate():
    curves = avot_experiment(users=12, subsets=20, rounds=2000, steps=(0.2,), decay=0.5, seeds=3)
    found = curves.rate("fedavot")
    assert found.slope < -0.3 and found.slope_error < 0.5
    assert curves.rate("uniform").slope > -0.2


def test_full_participation_weighs_by_importance_under_every_rule():
    p = np.array([0.5, 0.3, 0.2])
    law = SELECTIONS["all"](3)
    found = coefficients(AvotWeights(p).fit(law.subsets, law.q), p, law.rates, np.arange(3))
    for rule in ("fedavot", "renormalised", "horvitz_thompson", "unnormalised"):
        np.testing.assert_allclose(found[rule], p, atol=1e-9)


def test_bad_laws_and_importance_are_one_line_errors():
    with pytest.raises(BadOption, match="5 of 4 clients"):
        SELECTIONS["k-of-n"](4, k=5)
    with pytest.raises(BadOption, match="meets one of them twice"):
        SELECTIONS["groups"](4, size=2, stride=4)
    with pytest.raises(BadOption, match="drop-outs"):
        SELECTIONS["drop-outs"](4, rate=1.0)
    with pytest.raises(BadOption, match="give 3 numbers"):
        importance_of((0.5, 0.5), np.ones(3))
    with pytest.raises(BadOption, match="choices: samples, uniform"):
        importance_of("size", np.ones(3))


def test_the_network_without_a_convex_objective_has_the_gradients_it_says():
    p = np.array([0.5, 0.3, 0.2])
    problem, rng = mlp_classification(load("digits"), p, 0, hidden=3), np.random.default_rng(0)
    index, at = np.arange(3), problem.start
    assert problem.gradients(np.stack([at, 2 * at]), index).shape == (2, 3, problem.size)
    # a gradient field: its differences are symmetric, `u H v = v H u`
    u, v = rng.standard_normal((2, problem.size))

    def slope(along, seen):
        ends = problem.gradients(np.stack([at + 1e-4 * along, at - 1e-4 * along]), index)
        return (ends[0] - ends[1]) / 2e-4 @ seen

    np.testing.assert_allclose(slope(u, v), slope(v, u), rtol=1e-5)
    for _ in range(60):
        at = at - (p @ problem.gradients(at[None], index)[0]) / problem.curvature
    assert problem.excess(at[None])[0] < 0.5 * problem.excess(problem.start[None])[0]


def test_the_error_falls_with_the_horizon_for_unbiased_rules_alone():
    rates = avot_rates("linear", (100, 400, 1600), users=10, subsets=20, seeds=2)
    assert rates.rate("fedavot").slope < -0.25 and rates.rate("full").slope < -0.4
    assert rates.rate("uniform").slope > -0.25
    assert rates.errors["fedavot"].shape == (2, 3)
    assert len(rates_figure(rates, RULES).data) > len(RULES)
