"""The regime tells four planted relations apart, held out, also on few samples."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from featalign.align.linear import orthogonal_map, ridge_map
from featalign.align.regime import commutation_defect, regime
from featalign.dictionaries import Dictionary
from featalign.errors import NotFinite, ProbeError
from featalign.spaces.graph import Symmetry


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def sparse_codes(samples: int, features: int, seed: int = 0) -> torch.Tensor:
    u = torch.rand(samples, features, generator=torch.Generator().manual_seed(seed))
    return torch.where(u < 0.04, u / 0.04, 0.0)


def planted(atoms: torch.Tensor) -> Dictionary:
    """A dictionary with the true atoms: codes are the largest projections."""
    tensors = {"W_enc": atoms.T.contiguous(), "W_dec": atoms, "b_enc": torch.zeros(len(atoms))}
    return Dictionary("topk", {**tensors, "b_dec": torch.zeros(atoms.shape[1])}, 2)


@pytest.mark.parametrize("samples", [100, 400, 2000])
def test_a_permutation_is_recognised(samples: int) -> None:
    a = (draw(samples, 30) @ draw(30, 60, seed=1)).relu()
    found = regime(a, 2 * a[:, torch.randperm(60)] + 1, symmetry=Symmetry.SCALED_PERMUTATION)
    assert found.name == "permutation" and found.recommended == "ot-acts"
    assert found.permutation > 0.99 and found.neuron_correlation > 0.99 > 0.6 > found.neuron_null


def test_a_rotation_is_recognised_and_not_recommended_before_a_nonlinearity() -> None:
    a, rotation = draw(1000, 20) * torch.linspace(0.5, 2, 20), torch.linalg.qr(draw(20, 20, seed=1))[0]
    assert regime(a, a @ rotation).recommended == "procrustes"
    privileged = regime(a, a @ rotation, symmetry="permutation")
    assert privileged.name == "rotation" and privileged.recommended == "feature-reexpress"
    assert privileged.commutation_defect > 0.1


def test_rearranged_and_missing_features_are_told_apart() -> None:
    codes = sparse_codes(3000, 32)
    atoms_a, atoms_b = (torch.nn.functional.normalize(draw(32, 12, seed=s), dim=1) for s in (1, 2))
    same = regime(codes @ atoms_a, codes @ atoms_b, planted(atoms_a), planted(atoms_b))
    assert same.name == "rearrangement" and same.recommended == "feature-reencode"
    assert same.features > same.linear + 0.2 and abs(same.gram_agreement) < 0.3
    known_a, known_b = codes.clone(), codes.clone()
    known_a[:, 20:], known_b[:, :12] = 0, 0
    lacking = regime(known_a @ atoms_a, known_b @ atoms_b, planted(atoms_a[:20]), planted(atoms_b[12:]))
    assert lacking.name == "missing-features" and lacking.recommended == "feature-union"
    assert max(lacking.matched) < 0.7 < min(same.matched)


def test_a_probe_with_features_a_client_never_saw_is_no_rearrangement() -> None:
    codes = sparse_codes(3000, 32)
    atoms_a, atoms_b = (torch.nn.functional.normalize(draw(32, 12, seed=s), dim=1) for s in (1, 2))
    better_at_home = replace(planted(atoms_b), quality=SimpleNamespace(explained_variance=1.0))
    found = regime(codes @ atoms_a, codes @ atoms_b, planted(atoms_a), better_at_home)
    assert found.unseen[0] == 0 and found.unseen[1] > 0.1
    assert found.name == "missing-features" and "client B's dictionary" in found.explanation


@pytest.mark.parametrize("samples", [40, 400])
def test_unrelated_codes_earn_nothing_on_held_out_samples(samples: int) -> None:
    found = regime(draw(samples, 50), draw(samples, 50, seed=1))
    assert max(found.permutation, found.orthogonal, found.linear) < 0.1
    assert found.name == "missing-features" and abs(found.neuron_correlation - found.neuron_null) < 0.1


def test_ridge_is_held_back_by_few_samples_and_exact_on_many() -> None:
    a, weight = draw(500, 10), draw(10, 6, seed=1)
    assert torch.allclose(ridge_map(a.double(), (a @ weight).double()), weight.double(), atol=1e-3)
    noise = ridge_map(draw(30, 25).double(), draw(30, 6, seed=2).double())
    assert noise.norm() < 0.5


def test_only_permutations_commute_with_relu() -> None:
    pre = draw(500, 6)
    permutation = torch.eye(6)[torch.tensor([2, 0, 1, 5, 4, 3])]
    assert commutation_defect(3 * permutation, pre) == 0
    assert commutation_defect(torch.linalg.qr(draw(6, 6, seed=4))[0], pre) > 0.05
    assert torch.allclose(orthogonal_map(pre.double(), pre.double() @ permutation.T.double()), permutation.double())


def test_bad_activations_are_named() -> None:
    with pytest.raises(ProbeError, match="same probe"):
        regime(draw(50, 4), draw(40, 4))
    with pytest.raises(ProbeError, match="at least 20"):
        regime(draw(5, 4), draw(5, 4))
    with pytest.raises(NotFinite, match="client B"):
        regime(draw(50, 4), draw(50, 4) * float("nan"))


def test_it_is_plain_data() -> None:
    a = draw(200, 8)
    assert regime(a, a).to_dict()["name"] == "permutation" and "permutation" in regime(a, a)._repr_html_()
