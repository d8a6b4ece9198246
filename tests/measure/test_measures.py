"""Measures against truth, closed forms against slow definitions, nulls at chance."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression
from sklearn.metrics import r2_score
from torch import nn

from featalign import measure as fm
from featalign.errors import SpaceMismatch


@pytest.fixture(scope="module")
def rng():
    return torch.Generator().manual_seed(0)


def superposed(features, units, rng, samples=3000):
    atoms = torch.randn(features, units, generator=rng)
    atoms /= atoms.norm(dim=1, keepdim=True)
    codes = (torch.rand(samples, features, generator=rng) < 0.1) * torch.rand(samples, features, generator=rng)
    return codes, atoms


def test_explained_variance_is_scikit_learns(rng):
    a = torch.randn(300, 6, generator=rng) * torch.arange(1.0, 7)
    b = torch.from_numpy(LinearRegression().fit(a[:, :3], a).predict(a[:, :3])).float() + 0.1
    wanted = r2_score(a.numpy(), b.numpy(), multioutput="variance_weighted")
    assert fm.explained_variance(a, b) == pytest.approx(wanted, abs=1e-6)
    assert fm.explained_variance(a, a) == 1
    with pytest.raises(SpaceMismatch):
        fm.explained_variance(a, b[:, :2])


def test_psi_is_monotone_in_planted_superposition_and_one_without(rng):
    found = [fm.superposition(*superposed(features, 16, rng)).value for features in (16, 32, 64)]
    assert found[0] < found[1] < found[2]
    assert found[0] == pytest.approx(1, abs=0.05) and found[2] == pytest.approx(4, abs=0.2)


def test_features_per_unit_rise_with_superposition_and_are_one_for_the_identity(rng):
    codes, _ = superposed(16, 16, rng)
    alone = fm.effective_features_per_unit(codes, torch.eye(16))
    assert torch.allclose(alone, torch.ones(16, dtype=alone.dtype), atol=1e-6)
    mixed = [fm.effective_features_per_unit(*superposed(f, 16, rng)).mean() for f in (16, 32, 64)]
    assert 1 < mixed[0] < mixed[1] < mixed[2]


def test_feature_dimensionality_sums_to_at_most_m(rng):
    weights = torch.randn(40, 10, generator=rng)
    assert float(fm.feature_dimensionality(weights).sum()) <= 10 + 1e-6
    assert torch.allclose(fm.feature_dimensionality(torch.eye(5)), torch.ones(5).double())


def test_monosemanticity_equals_its_definition(rng):
    a, e = torch.rand(30, 4, generator=rng), torch.randn(30, 7, generator=rng)
    scaled = (a - a.min(0).values) / (a.max(0).values - a.min(0).values)
    unit = e / e.norm(dim=1, keepdim=True)
    similarity = unit @ unit.T
    slow = []
    for u in range(4):
        weight = torch.outer(scaled[:, u], scaled[:, u])
        weight.fill_diagonal_(0)
        slow.append(float((weight * similarity).sum() / weight.sum()))
    assert np.allclose(fm.monosemanticity(a, e).numpy(), slow, atol=1e-5)
    a[:, 0] = (torch.arange(30) == 7).float()  # one input drives it: there is no pair
    a[:, 1] = 0.5
    assert fm.monosemanticity(a, e).isnan().tolist() == [True, True, False, False]


def test_separability_is_one_for_disjoint_and_small_for_equal(rng):
    labels = torch.arange(400) % 2
    codes = torch.stack([labels.float() + 0.1 * torch.rand(400, generator=rng), torch.rand(400, generator=rng)], 1)
    disjoint, equal = fm.separability(codes, labels).tolist()
    assert disjoint == pytest.approx(1, abs=1e-6) and equal < 0.15


def test_class_measures_are_extreme_where_they_should_be():
    labels = torch.arange(100) % 5
    codes = torch.cat([nn.functional.one_hot(labels, 5).float(), torch.ones(100, 1), torch.zeros(100, 1)], 1)
    selectivity = fm.class_selectivity(codes, labels)
    assert torch.allclose(selectivity[:5], torch.ones(5).double()) and abs(float(selectivity[5])) < 1e-9
    entropy = fm.class_entropy(codes, labels)
    assert float(entropy[0]) == pytest.approx(0, abs=1e-9) and float(entropy[5]) == pytest.approx(1, abs=1e-6)
    assert torch.isnan(selectivity[6]) and torch.isnan(entropy[6])


def test_a_permuted_dictionary_has_mcc_one_and_random_ones_the_null(rng):
    atoms = torch.randn(30, 12, generator=rng)
    same = fm.match_scores(atoms, atoms[torch.randperm(30, generator=rng)])
    assert same.mcc == pytest.approx(1) and same.shared == 1 and same.mmcs == pytest.approx(1)
    other = fm.match_scores(atoms, torch.randn(30, 12, generator=rng))
    assert other.mcc == pytest.approx(other.null, abs=0.08)
    flipped = fm.match_scores(atoms, -atoms)
    assert flipped.mcc == pytest.approx(1) and flipped.signed_mcc < 0.9
    dead = torch.zeros(30, dtype=torch.bool)
    assert np.isnan(fm.match_scores(atoms, atoms, dead, dead).mcc)


def test_cycles_close_for_permutations_and_not_by_chance():
    rng = np.random.default_rng(0)
    p, q = rng.permutation(40), rng.permutation(40)
    back = np.argsort(q[p])
    score = fm.cycle_consistency([p, q, back])
    assert score.value == 1 and score.coverage == 1 and score.null < 0.2
    broken = back.copy()
    broken[:20] = -1
    assert fm.cycle_consistency([p, q, broken]).coverage == 0.5


def test_probing_finds_planted_classes_and_nothing_in_shuffled_labels(rng):
    labels = torch.arange(2000) % 4
    codes = torch.rand(2000, 12, generator=rng)
    codes[:, :4] += nn.functional.one_hot(labels, 4)
    found = fm.sparse_probing(codes, labels)
    assert found.value > 0.95 and found.null == pytest.approx(0.5, abs=0.05) and found.evidence
    noise = fm.sparse_probing(codes, labels[torch.randperm(2000, generator=rng)])
    assert not noise.evidence or abs(noise.value - 0.5) < 0.05
    moved = fm.targeted_perturbation(codes, labels)
    assert moved.value > 0.2 > abs(moved.null)


def test_absorption_is_zero_without_and_seen_where_planted(rng):
    labels = (torch.arange(2000) % 2).long()
    atoms = torch.eye(6)
    atoms[1] = torch.tensor([0.8, 0.6, 0, 0, 0, 0])
    codes = torch.zeros(2000, 6)
    codes[:, 0] = labels.float()
    clean = fm.absorption(codes, labels, atoms).value
    taken = (labels == 1) & (torch.rand(2000, generator=rng) < 0.3)
    codes[taken, 0], codes[taken, 1] = 0.0, 1.0
    assert clean == 0 and fm.absorption(codes, labels, atoms).value > 0.1


def test_a_privileged_basis_is_told_from_a_rotated_one(rng):
    sparse = (torch.rand(4000, 12, generator=rng) < 0.1) * torch.rand(4000, 12, generator=rng)
    rotation = torch.linalg.qr(torch.randn(12, 12, generator=rng)).Q
    own, rotated = fm.privileged_basis(sparse), fm.privileged_basis(sparse @ rotation)
    assert own.value > 2 * own.null and abs(rotated.value - rotated.null) < 1
    assert float(fm.hoyer(sparse).mean()) > float(fm.hoyer(sparse @ rotation).mean())


def test_scores_carry_interval_and_coverage():
    score = fm.mean_score([1.0, 2.0, 3.0, float("nan")], null=0.0)
    assert score.value == 2 and score.coverage == 0.75 and score.interval[0] <= 2 <= score.interval[1]
    assert score.evidence and not fm.mean_score([]).evidence
