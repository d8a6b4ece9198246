"""Kinds of input that every measure must take: tokens, labels of any naming, samples without a class, NaN."""

import numpy as np
import pytest
import torch
from sklearn.metrics import r2_score

from featalign import measure as fm
from featalign.errors import NotFinite, ProbeError, SpaceMismatch


@pytest.fixture(scope="module")
def data():
    """Codes `[20, 30, 12]` that say something about five classes, and atoms `[12, 7]`."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(600) % 5
    codes = torch.rand(600, 12, generator=draw) * (torch.rand(600, 12, generator=draw) < 0.4)
    codes[:, :5] += torch.nn.functional.one_hot(labels, 5) * torch.rand(600, 5, generator=draw)
    return codes.reshape(20, 30, 12), labels.reshape(20, 30), torch.randn(12, 7, generator=draw)


MEASURES = {
    "explained_variance": lambda z, y, d: fm.explained_variance(z, z * 0.9),
    "shrinkage": lambda z, y, d: fm.shrinkage(z, z * 0.9 + 0.1 * z.mean()),
    "effective_features": lambda z, y, d: fm.effective_features(z, d),
    "superposition": lambda z, y, d: fm.superposition(z, d),
    "participation_ratio": lambda z, y, d: fm.participation_ratio(z),
    "kurtosis": lambda z, y, d: fm.kurtosis(z),
    "hoyer": lambda z, y, d: fm.hoyer(z),
    "privileged_basis": lambda z, y, d: fm.privileged_basis(z),
    "effective_features_per_unit": lambda z, y, d: fm.effective_features_per_unit(z, d),
    "monosemanticity": lambda z, y, d: fm.monosemanticity(z, z[..., :3] + 1),
    "correlation": lambda z, y, d: fm.correlation(z, z[..., :4]),
    "class_profile": lambda z, y, d: fm.class_profile(z, y).sort(1).values,
    "class_selectivity": lambda z, y, d: fm.class_selectivity(z, y),
    "class_entropy": lambda z, y, d: fm.class_entropy(z, y),
    "separability": lambda z, y, d: fm.separability(z, y),
    "sparse_probing": lambda z, y, d: fm.sparse_probing(z, y),
    "targeted_perturbation": lambda z, y, d: fm.targeted_perturbation(z, y),
    "absorption": lambda z, y, d: fm.absorption(z, y, d),
}
LABELLED = ["class_profile", "class_selectivity", "class_entropy", "separability", "sparse_probing"]
LABELLED += ["targeted_perturbation", "absorption"]
ATOMS_ONLY = {"feature_dimensionality", "match_scores", "pairwise_mcc", "redundancy", "relative_norms"}
OTHER = {"Agreement", "MatchScores", "Score", "mean_score", "cycle_consistency", "latent_strengths", "norm_shares"}


def same(a, b):
    if isinstance(a, fm.Score):
        a, b = [torch.tensor([s.value, s.null, *s.interval, s.coverage]) for s in (a, b)]
    return torch.allclose(torch.as_tensor(a).double(), torch.as_tensor(b).double(), atol=1e-9, equal_nan=True)


def test_every_measure_of_activations_is_tried_here():
    assert {*MEASURES, *ATOMS_ONLY, *OTHER} == {*fm.__all__}


@pytest.mark.parametrize("name", MEASURES)
def test_tokens_count_as_samples_and_arrays_as_tensors(data, name):
    codes, labels, atoms = data
    flat = MEASURES[name](codes.reshape(-1, 12), labels.reshape(-1), atoms)
    assert same(MEASURES[name](codes, labels, atoms), flat)
    assert same(MEASURES[name](codes.numpy(), labels.numpy(), atoms), flat)


@pytest.mark.parametrize("name", MEASURES)
def test_nan_is_refused(data, name):
    codes, labels, atoms = data
    codes = codes.clone()
    codes[3, 4, 2] = float("nan")
    with pytest.raises(NotFinite, match="NaN"):
        MEASURES[name](codes, labels, atoms)


@pytest.mark.parametrize("name", LABELLED)
def test_names_of_classes_change_nothing(data, name):
    codes, labels, atoms = data
    wanted = MEASURES[name](codes, labels, atoms)
    swapped = torch.tensor([7, 3, 900, 0, 12])[labels]
    named = np.array(["cat", "ant", "elk", "bat", "dog"])[labels.numpy()]
    for other in (labels + 100, labels * 17, swapped, labels.float(), labels.int(), labels.tolist(), named):
        assert same(MEASURES[name](codes, other, atoms), wanted)


@pytest.mark.parametrize("name", LABELLED)
def test_masked_samples_and_missing_classes_count_as_absent(data, name):
    codes, labels, atoms = data[0].reshape(-1, 12), data[1].reshape(-1), data[2]
    there = labels != 2
    wanted = MEASURES[name](codes[there], labels[there], atoms)
    assert same(MEASURES[name](codes, torch.where(there, labels, -100), atoms), wanted)
    assert same(MEASURES[name](codes, torch.where(there, labels + 50, -1), atoms), wanted)
    with pytest.raises(ProbeError, match="negative"):
        MEASURES[name](codes, torch.full_like(labels, -100), atoms)
    with pytest.raises(SpaceMismatch, match="and 599 labels"):
        MEASURES[name](codes, labels[1:], atoms)
    with pytest.raises(SpaceMismatch, match="one class per sample"):
        MEASURES[name](codes, labels + 0.5, atoms)


def test_a_profile_over_given_classes_has_their_columns(data):
    codes, labels, _ = data
    found = fm.class_profile(codes, labels * 2, 10)
    assert found.shape == (12, 10) and torch.allclose(found[:, ::2], fm.class_profile(codes, labels))
    assert float(found[:, 1::2].abs().max()) == 0
    with pytest.raises(SpaceMismatch, match="of 3 classes"):
        fm.class_profile(codes, labels, 3)


def test_explained_variance_of_tokens_is_scikit_learns(data):
    codes = data[0]
    back = codes + torch.randn(codes.shape, generator=torch.Generator().manual_seed(1)) / 10
    flat = [values.reshape(-1, 12).numpy() for values in (codes, back)]
    wanted = r2_score(*flat, multioutput="variance_weighted")
    assert fm.explained_variance(codes, back) == pytest.approx(wanted, abs=1e-6)
    assert np.isnan(fm.explained_variance(torch.ones(5, 3), torch.ones(5, 3)))


def test_the_interval_of_psi_holds_it_and_narrows_with_samples():
    draw = torch.Generator().manual_seed(3)
    for features, rate in ((20, 0.3), (400, 0.02), (2000, 0.002)):
        codes = (torch.rand(4000, features, generator=draw) < rate) * torch.rand(4000, features, generator=draw)
        atoms = torch.randn(features, 16, generator=draw)
        widths = []
        for count in (250, 4000):
            found = fm.superposition(codes[:count], atoms)
            assert found.interval[0] < found.value < found.interval[1]
            assert found.value == pytest.approx(fm.effective_features(codes[:count], atoms) / 16)
            widths.append((found.interval[1] - found.interval[0]) / found.value)
        assert widths[1] < widths[0]


def test_the_interval_of_psi_covers_the_whole():
    """About 95 of 100 samples' intervals hold the value of many more samples."""
    draw = torch.Generator().manual_seed(4)
    atoms = torch.randn(30, 8, generator=draw)
    rates = torch.rand(30, generator=draw) * 0.4 + 0.1

    def codes(count):
        return (torch.rand(count, 30, generator=draw) < rates) * torch.rand(count, 30, generator=draw)

    truth = fm.effective_features(codes(200_000), atoms) / 8
    found = [fm.superposition(codes(1000), atoms).interval for _ in range(60)]
    assert sum(low <= truth <= high for low, high in found) >= 50


def test_correlation_is_numpys(data):
    codes = data[0].reshape(-1, 12).clone()
    codes[:, 3] = 2.0
    found = fm.correlation(codes, codes[:, :5])
    kept = [0, 1, 2, 4, 5]
    wanted = np.corrcoef(codes[:, kept].double().numpy(), rowvar=False)
    assert np.allclose(found[kept][:, [0, 1, 2, 4]], wanted[:, :4], atol=1e-9)
    assert float(found[3].abs().max()) == 0 and float(found[:, 3].abs().max()) == 0


def test_nan_atoms_are_refused():
    with pytest.raises(NotFinite, match="atoms"):
        fm.match_scores(torch.full((3, 4), float("nan")), torch.eye(4))
