"""Correspondence of latents against planted truth: codes, splits and merges, nulls, geometry."""

import numpy as np
import pytest
import torch

from featalign.align.correspondence import MATCHED, MERGED, OWN, SPLIT, Rule, correspond, match_listed
from featalign.align.geometry import MatchWarning, by_geometry, directions_agreement
from featalign.errors import BadOption, NotFinite, ProbeError, SpaceMismatch
from featalign.transport import codes as sparse_codes
from featalign.transport.codes import Codes, ListedCost, nearest
from tests.match.planted import planted


@pytest.fixture(scope="module")
def truth():
    return planted()


@pytest.fixture(scope="module")
def clients(truth):
    return tuple(Codes.gathered(np.array_split(codes, 3)) for codes in truth.codes)


@pytest.fixture(scope="module")
def found(clients):
    return correspond(*clients)


def test_planted_pairs_own_features_and_splits(truth, found):
    pairs = {(link.a, link.b) for link in found.links}
    assert len(pairs & truth.pairs) >= 0.97 * len(pairs) and len(pairs & truth.pairs) >= 0.97 * len(truth.pairs)
    for side, letter in ((0, "a"), (1, "b")):
        own = found.kinds(side) == OWN
        real = np.char.startswith(truth.truth[side].astype(str), letter)
        assert (own & real).sum() >= 0.95 * real.sum() and (own & real).sum() >= 0.95 * own.sum()
    split = {truth.truth[0][link.a] for link in found.links if link.kind == SPLIT}
    assert len(split & {f"s{k}" for k in range(truth.split)}) >= 0.95 * truth.split
    assert (found.kinds(1) == MERGED).sum() >= 1.9 * truth.split
    together = [link.together for link in found.links if link.kind == SPLIT]
    alone = [found.near[link.a, link.b] for link in found.links if link.kind == SPLIT]
    assert min(together) > max(alone)


def test_splits_become_merges_when_the_clients_are_exchanged(clients, found):
    back = correspond(clients[1], clients[0])
    assert {(link.b, link.a) for link in back.links} == {(link.a, link.b) for link in found.links}
    assert {link.kind for link in back.links} == {MATCHED, MERGED}


def test_the_plan_is_certified(found):
    assert 0 <= found.plan.gap <= 1e-9 and found.plan.value > 0


@pytest.mark.parametrize("noise", [0.3, 1.5])
def test_at_most_one_percent_survives_shuffling(noise):
    kept = []
    for seed in range(3):
        a, b = (Codes.gathered([codes]) for codes in planted(4000, 120, 30, 10, noise=noise, seed=seed).codes)
        kept.append(len(correspond(a, b.shuffled(50 + seed), Rule(minimum=0.0)).links) / a.width)
    assert np.mean(kept) <= 0.012


def test_rare_latents_need_a_better_score():
    rng = np.random.default_rng(0)
    rates = np.repeat([0.002, 0.1], 300)
    a, b = (Codes.gathered([((rng.random((4000, 600)) < rates) * 1.0).astype(np.float32)]) for _ in range(2))
    levels = correspond(a, b, Rule(firings=3)).levels[0]
    assert np.nanmedian(levels[:300]) > 2 * np.nanmedian(levels[300:])


def test_nearest_pairs_are_those_of_the_whole_matrix(monkeypatch, truth, clients):
    whole = np.corrcoef(truth.codes[0].T, truth.codes[1].T)[:500, 500:]
    everything = nearest(*clients)
    assert np.allclose(1 - everything.costs, whole.ravel()[everything.keys], atol=1e-4)
    assert len(everything.keys) == (whole > 0).sum()
    for name, value in (("WHOLE", 0), ("BLOCK_ENTRIES", 40 * whole.shape[1])):
        monkeypatch.setattr(sparse_codes, name, value)
    few = nearest(*clients, keep=4)
    matrix = few.matrix(1 - few.costs).toarray()
    assert (matrix > 0).sum() < 0.05 * whole.size
    for axis in (0, 1):
        best = np.sort(whole, axis=axis).take([-1, -2], axis=axis)
        assert np.allclose(np.sort(matrix, axis=axis).take([-1, -2], axis=axis), np.maximum(best, 0), atol=1e-4)
    monkeypatch.setattr(sparse_codes, "CROWD", 0.0)  # dense products of the same
    assert np.allclose(nearest(*clients, keep=4).costs, few.costs, atol=1e-5)


def test_a_listed_cost_is_transposed_as_its_matrix(clients):
    cost = ListedCost(nearest(*clients))
    assert np.array_equal(cost.transposed().dense(), cost.dense().T)
    assert match_listed(cost.pairs, 0.7).gap < 1e-9


def test_codes_that_cannot_be_compared(clients):
    a = clients[0]
    with pytest.raises(ProbeError, match="12000 samples of A and 5 of B"):
        nearest(a, Codes.gathered([np.ones((5, 3))]))
    with pytest.raises(ProbeError, match="active on 10 of 4 samples"):
        correspond(Codes.gathered([np.ones((4, 3))]), Codes.gathered([np.ones((4, 3))]))
    with pytest.raises(NotFinite):
        Codes.gathered([np.array([[np.nan, 1.0]])])
    with pytest.raises(ProbeError, match="no samples"):
        Codes.gathered([])
    with pytest.raises(BadOption, match="quantile"):
        Rule(quantile=1.5)


def atoms(seed, count=80, units=20):
    return torch.randn(count, units, generator=torch.Generator().manual_seed(seed))


def test_geometry_of_one_ancestry_of_rotated_and_of_unrelated_bases():
    a = atoms(0)
    order = torch.randperm(len(a), generator=torch.Generator().manual_seed(1))
    b = (a + 0.1 * atoms(2))[order]
    with pytest.warns(MatchWarning, match="one ancestry"):
        found, how = by_geometry(a, b)
    assert how == "cosine" and all(order[link.b] == link.a for link in found.links) and len(found.links) == 80
    turn = torch.linalg.qr(atoms(3, 20)).Q
    with pytest.warns(MatchWarning, match="Gram matrices"):
        found, how = by_geometry(a, b @ turn)
    assert how == "gromov" and sum(int(order[link.b]) == link.a for link in found.links) >= 78
    assert found.plan.gap >= 0 and found.agreement.mcc > 2 * found.by_chance.mcc
    with pytest.warns(MatchWarning, match="look unrelated"):
        found, how = by_geometry(a, atoms(4))
    assert len(found.links) <= 3
    assert directions_agreement(a, b).mcc > 0.95 > directions_agreement(a, atoms(4)).mcc


def test_geometry_that_does_not_apply():
    with pytest.raises(SpaceMismatch, match="no cosine"):
        by_geometry(atoms(0), atoms(1, units=10), geometry="cosine")
    with pytest.raises(BadOption, match="Gram matrices are matched up to"):
        by_geometry(atoms(0, 900), atoms(1, 900, 10))
    with pytest.raises(BadOption, match="choices: auto, cosine, gromov"):
        by_geometry(atoms(0), atoms(1), geometry="angles")
