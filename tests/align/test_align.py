"""Alignment: plans become maps, dictionaries in another order match, pools choose the units that matter."""

import numpy as np
import pytest
import torch

from featalign.align import SpaceMap, match_features, project
from featalign.align.feature import fold, re_express
from featalign.align.pool import Cross, Gram, reading_map, select_columns
from featalign.dictionaries import NeuronBasis
from featalign.errors import BadOption, ProbeError, SpaceMismatch
from featalign.spaces.graph import Symmetry
from featalign.transport import solve


class Rotated:
    """A basis whose atoms are the rows of an orthogonal matrix."""

    name = "rotated"

    def __init__(self, atoms):
        self.atoms = atoms

    def encode(self, activations):
        return activations @ self.atoms.T

    def decode(self, codes):
        return codes @ self.atoms


def samples(count=500, units=10, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, units, generator=generator) * (torch.rand(count, units, generator=generator) < 0.3)


def test_maps_from_a_plan_pair_and_average():
    plan = solve(np.random.default_rng(0).random((6, 4)), method="exact")
    space_map = SpaceMap.from_plan(plan)
    assert space_map.out.shape == (4, 6) and space_map.into.shape == (6, 4)
    assert torch.allclose(space_map.out.sum(1), torch.ones(4).double()) and torch.allclose(
        space_map.into.sum(1), torch.ones(6).double()
    )


def test_maps_that_do_not_pair_are_refused():
    with pytest.raises(SpaceMismatch, match="do not pair"):
        SpaceMap(torch.zeros(3, 4), torch.zeros(3, 4), Symmetry.PERMUTATION)


def test_a_permuted_dictionary_matches_itself():
    codes, order = samples(), torch.randperm(10, generator=torch.Generator().manual_seed(5))
    match = match_features(NeuronBasis(10), NeuronBasis(10), [(codes, codes[:, order])])
    assert len(match.pairs) == 10 and match.scores.min() > 1 - 1e-9
    assert (order.numpy()[match.pairs[:, 1]] == match.pairs[:, 0]).all()
    assert match.plan.lower_bound <= match.plan.value + 1e-9


def test_latents_without_partner_stay_unmatched():
    shared, own_a, own_b = samples(4000, 6, 0), samples(4000, 4, 1), samples(4000, 4, 2)
    a, b = torch.cat([shared, own_a], 1), torch.cat([shared, own_b], 1)
    match = match_features(NeuronBasis(10), NeuronBasis(10), [(a, b)])
    true = {(i, i) for i in range(6)}
    found = {tuple(pair) for pair in match.pairs}
    assert true <= found and len(found - true) <= 1  # the null lets one in twenty through


def test_dead_latents_carry_no_mass_and_a_dead_basis_is_an_error():
    codes = samples()
    codes[:, 3] = 0
    match = match_features(NeuronBasis(10), NeuronBasis(10), [(codes, codes)])
    assert 3 not in match.pairs[:, 0] and match.plan.a[3] == 0
    with pytest.raises(ProbeError, match="fires"):
        match_features(NeuronBasis(10), NeuronBasis(10), [(codes * 0, codes)])


def test_linear_space_decodes_to_the_rotation_between_dictionaries():
    codes = samples(2000, 8)
    q1, q2 = (torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(s)))[0] for s in (1, 2))
    a, b = Rotated(q1), Rotated(q2)
    match = match_features(a, b, [(codes @ q1, codes @ q2)])
    decoded = project(match, a, b, Symmetry.ORTHOGONAL)
    assert torch.allclose(codes @ q1 @ decoded.out.T.float(), codes @ q2, atol=1e-4)
    assert torch.allclose(decoded.out @ decoded.into, torch.eye(8).double(), atol=1e-5)


def test_fold_is_exact_where_there_is_no_nonlinearity():
    codes = samples(2000, 8)
    q1, q2 = (torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(s)))[0] for s in (1, 2))
    a, b = Rotated(q1), Rotated(q2)
    folded = fold(match_features(a, b, [(codes @ q1, codes @ q2)]), a, b)
    assert torch.allclose(codes @ q1 @ folded.out.T.float(), codes @ q2, atol=1e-3)


def test_re_expression_of_a_client_as_itself_is_its_own_pre_activation():
    pre = torch.randn(800, 6, generator=torch.Generator().manual_seed(0))
    post, basis = pre.relu(), NeuronBasis(6)
    match = match_features(basis, basis, [(post, post)])
    expression = re_express(match, basis, basis, [(post, pre)])
    assert torch.allclose(expression(post, post, pre), pre.double(), atol=1e-6)


def gram_of(pool, batch=7):
    """Second moments of a pool's rows, added up batch by batch."""
    gram = Gram()
    for rows in pool.split(batch):
        gram.add(rows)
    return gram


def crosses_of(pool, *targets):
    """Cross moments of a pool with each reader's targets, as a choice takes them."""
    found = [Cross() for _ in targets]
    for cross, wanted in zip(found, targets):
        for rows, values in zip(pool.split(7), wanted.split(7)):
            cross.add(rows, values)
    return [cross.moments for cross in found]


def greedy(pool, targets, count):
    """The units that lower the regression error of all targets most, one by one, tried out."""

    def error(units):
        x = pool[:, units]
        return sum(float((y - x @ torch.linalg.lstsq(x, y).solution).square().sum()) for y in targets)

    chosen: list[int] = []
    for _ in range(count):
        chosen.append(min(set(range(pool.shape[1])) - set(chosen), key=lambda unit: error([*chosen, unit])))
    return chosen


def test_column_selection_finds_the_columns_that_span_the_targets():
    generator = torch.Generator().manual_seed(0)
    pool = torch.randn(1000, 12, generator=generator).double()
    target = pool[:, [2, 7, 9]] @ torch.randn(3, 5, generator=generator).double()
    gram, crosses = gram_of(pool), crosses_of(pool, target)
    chosen = select_columns([gram], crosses, 3)
    assert sorted(chosen) == [2, 7, 9]
    reading = reading_map(gram.columns(torch.as_tensor(chosen)), torch.as_tensor(chosen))
    assert torch.allclose(reading[chosen], torch.eye(3, dtype=torch.float64), atol=1e-5)
    with pytest.raises(BadOption, match="pool of 12"):
        select_columns([gram], crosses, 13)
    with pytest.raises(BadOption, match="pool of 4"):
        select_columns([gram], crosses, 5, torch.tensor([1, 2, 3, 9]))


@pytest.mark.parametrize("ahead", [1, 3, 16])
@pytest.mark.parametrize(("rows", "units"), [(60, 9), (10, 24)])
@pytest.mark.parametrize("seed", range(3))
def test_every_unit_chosen_lowers_the_regression_error_most(rows, units, seed, ahead, monkeypatch):
    monkeypatch.setattr("featalign.align.pool.AHEAD", ahead)
    generator = torch.Generator().manual_seed(seed)
    pool = torch.randn(rows, units, generator=generator, dtype=torch.float64).relu()
    readers = [torch.randn(rows, 4, generator=generator, dtype=torch.float64) for _ in range(2)]
    gram = gram_of(pool)
    assert select_columns([gram, gram], crosses_of(pool, *readers), 6) == greedy(pool, readers, 6)


@pytest.mark.parametrize("rows", [60, 10])
def test_a_choice_among_some_units_is_that_of_a_pool_of_them(rows):
    generator = torch.Generator().manual_seed(1)
    pool = torch.randn(rows, 24, generator=generator, dtype=torch.float64)
    target, some = torch.randn(rows, 5, generator=generator, dtype=torch.float64), torch.arange(1, 24, 3)
    found = select_columns([gram_of(pool)], crosses_of(pool, target), 6, some)
    assert found == some[greedy(pool[:, some], [target], 6)].tolist()


@pytest.mark.parametrize("rows", [60, 10])
def test_of_copies_one_each_is_chosen_though_nothing_is_left_to_explain(rows):
    generator = torch.Generator().manual_seed(2)
    units = torch.randn(rows, 6, generator=generator, dtype=torch.float64)
    pool, target = units.repeat(1, 5), units[:, :2]
    chosen = select_columns([gram_of(pool)], crosses_of(pool, target), 6)
    assert sorted(unit % 6 for unit in chosen) == list(range(6))


@pytest.mark.parametrize("rows", [5, 19, 20, 60])
def test_second_moments_are_the_same_by_rows_and_added_up(rows):
    pool = torch.randn(rows, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gram, some = gram_of(pool), torch.tensor([3, 0, 17])
    assert torch.allclose(gram.whole(), pool.T @ pool)
    assert torch.allclose(gram.columns(some), (pool.T @ pool)[:, some])
    assert torch.allclose(gram.diagonal(), (pool.T @ pool).diagonal())


def test_targets_of_many_clients_are_sketched_without_losing_a_space_of_few_dimensions(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    pool = torch.randn(200, 20, generator=generator, dtype=torch.float64)
    mixed = torch.randn(5, 300, generator=generator, dtype=torch.float64)
    target = pool[:, [1, 4, 7, 13, 19]] @ mixed
    (exact,) = crosses_of(pool, target)
    monkeypatch.setattr("featalign.align.pool.TARGETS", 16)
    (cross,) = crosses_of(pool, target)
    assert cross.shape == (20, 16)
    assert exact.shape == (20, 300)
    assert sorted(select_columns([gram_of(pool)], [cross], 5)) == [1, 4, 7, 13, 19]
    whole = Cross(exact=True)
    whole.add(pool, target)
    assert torch.allclose(whole.moments, exact)
