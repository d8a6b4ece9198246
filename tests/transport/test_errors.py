"""Bad input has its own error, which names the remedy; never a zero plan or NaN in silence."""

import numpy as np
import pytest
import torch

from featalign import errors, transport
from featalign.transport import solve

COST = np.random.default_rng(0).random((4, 5))
OPTIONS = {"exact": {}, "auto": {}, "sparse": {}, "sinkhorn": {}, "partial": {"threshold": 0.5}, "unbalanced": {}}


@pytest.mark.parametrize("method", OPTIONS)
class TestEverySolver:
    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_cost_not_finite(self, method, bad):
        cost = COST.copy()
        cost[1, 2] = bad
        with pytest.raises(errors.NotFinite, match=r"\(1, 2\)"):
            solve(cost, method=method, **OPTIONS[method])

    def test_negative_mass(self, method):
        with pytest.raises(errors.TransportError, match="negative at index 1"):
            solve(COST, [0.5, -0.1, 0.3, 0.3], method=method, **OPTIONS[method])

    def test_no_mass(self, method):
        with pytest.raises(errors.TransportError, match="empty support"):
            solve(COST, np.zeros(4), method=method, **OPTIONS[method])

    def test_mass_not_finite(self, method):
        with pytest.raises(errors.NotFinite):
            solve(COST, [0.5, np.nan, 0.3, 0.2], method=method, **OPTIONS[method])

    def test_wrong_length(self, method):
        with pytest.raises(errors.TransportError, match=r"\(3,\)"):
            solve(COST, np.ones(3) / 3, method=method, **OPTIONS[method])

    def test_empty_cost(self, method):
        with pytest.raises(errors.TransportError, match="empty support"):
            solve(np.zeros((0, 3)), method=method, **OPTIONS[method])

    def test_no_matrix(self, method):
        with pytest.raises(errors.TransportError, match="matrix"):
            solve(np.zeros(3), method=method, **OPTIONS[method])


@pytest.mark.parametrize("method", ["exact", "auto", "sparse", "sinkhorn"])
def test_masses_that_do_not_sum_alike(method):
    with pytest.raises(errors.TransportError, match="sum to"):
        solve(COST, np.full(4, 0.25), np.full(5, 0.25), method=method)


def test_every_error_is_a_value_error():
    with pytest.raises(ValueError):
        solve(COST, np.zeros(4))


def test_unknown_names_list_the_choices():
    with pytest.raises(errors.UnknownName, match="did you mean 'sinkhorn'"):
        solve(COST, method="sinkhron")
    with pytest.raises(errors.BadOption, match="options: "):
        solve(COST, method="exact", eps=0.1)
    with pytest.raises(errors.UnknownName, match="correlation"):
        transport.ground_cost("corelation", COST, COST)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("partial", {}),
        ("partial", {"threshold": 0.1, "mass": 0.1}),
        ("partial", {"mass": 1.5}),
        ("partial", {"mass": -1}),
        ("partial", {"threshold": np.nan}),
        ("sinkhorn", {"eps": 0}),
        ("sinkhorn", {"tolerance": -1}),
        ("sparse", {"candidates": 0}),
        ("sparse", {"tolerance": -1}),
        ("unbalanced", {"price": 0}),
        ("unbalanced", {"divergence": "l2"}),
    ],
)
def test_options_out_of_range(method, options):
    with pytest.raises(errors.BadOption):
        solve(COST, method=method, **options)


def test_eps_that_underflows():
    with pytest.raises(errors.TransportError, match="underflows"):
        solve(COST, method="sinkhorn", eps=1e-12)


def test_smallest_eps_still_gives_a_feasible_plan():
    plan = solve(COST, method="sinkhorn", eps=1e-6, max_iterations=50)
    assert plan.marginal_error < 1e-9 and np.isfinite(plan.value)


def test_unbalanced_refuses_a_plan_that_vanishes():
    with pytest.raises(errors.TransportError, match="vanishes"):
        solve(COST + 10, method="unbalanced", price=0.01)


def test_batches_of_tensors_are_checked_too():
    cost = torch.rand(2, 3, 4)
    cost[1, 0, 0] = torch.nan
    with pytest.raises(errors.NotFinite):
        transport.sinkhorn(cost)
    with pytest.raises(errors.TransportError, match="negative"):
        transport.sinkhorn(torch.rand(2, 3), torch.tensor([1.5, -0.5]))
    with pytest.raises(errors.TransportError, match="sum alike"):
        transport.sinkhorn(torch.rand(2, 3), torch.ones(2))


def test_structures_must_be_square_and_samples_paired():
    with pytest.raises(errors.TransportError, match="square"):
        transport.gromov(COST, COST)
    with pytest.raises(errors.ProbeError, match="same probe set"):
        transport.ground_cost("correlation", COST, COST[:3])
    with pytest.raises(errors.NotFinite):
        transport.ground_cost("cosine", COST * np.nan, COST)
    with pytest.raises(errors.TransportError, match="previous="):
        transport.ground_cost("weights", COST, COST[:, :2])
    with pytest.raises(errors.TransportError, match="missing"):
        transport.universe({(0, 1): COST, (1, 2): COST.T})
