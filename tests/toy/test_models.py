"""Toy models: laws, batched training, geometry, packing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from featalign.align import pack
from featalign.errors import BadOption, CorruptFile, SpaceMismatch
from featalign.toy import Features, Geometry, Schedule, ToyConfig, ToyModels, initial, load, overlap, save, train

QUICK = Schedule(300, 128, 1e-2)


@given(st.sampled_from(["independent", "correlated", "anticorrelated", "hierarchical"]), st.floats(0.05, 0.45))
@settings(max_examples=12, deadline=None)
def test_laws_keep_density_and_relation(relation: str, density: float) -> None:
    x = Features.uniform(6, density, relation=relation).sample(20_000, torch.Generator().manual_seed(1))
    active = x > 0
    assert torch.allclose(active.float().mean(0), torch.full((6,), density), atol=0.02)
    both = (active[:, 0] & active[:, 1]).float().mean()
    expected = {"independent": density**2, "correlated": density, "anticorrelated": 0.0, "hierarchical": density}
    assert abs(float(both) - expected[relation]) < 0.02
    assert float(x.min()) >= 0 and float(x.max()) <= 1


def test_bad_laws_and_shapes_are_named() -> None:
    with pytest.raises(BadOption, match="even"):
        Features.uniform(5, 0.1, relation="correlated")
    with pytest.raises(BadOption, match=r"\[0, 1\]"):
        Features.uniform(5, 1.5)
    with pytest.raises(BadOption, match="relu, none"):
        ToyConfig(5, 2, output="tanh")
    with pytest.raises(SpaceMismatch, match="6 features"):
        train(ToyConfig(5, 2), Features.uniform(6))


@pytest.mark.parametrize("options", [{}, {"tied": False}, {"hidden": "relu"}, {"output": "none"}, {"bias": False}])
def test_one_step_follows_the_gradient_of_autograd(options: dict) -> None:
    config, law = ToyConfig(6, 3, **options), Features.uniform(6, 0.5, 0.8)
    start = initial(config, [3])
    after = train(config, law, [3], Schedule(1, 4096, 1e-3))
    x = law.sample(4096, torch.Generator().manual_seed(0))
    encoder, bias = start.encoder[0].clone().requires_grad_(), start.bias[0].clone().requires_grad_()
    hidden = x @ encoder.T
    hidden = hidden.relu() if config.hidden == "relu" else hidden
    out = hidden @ (encoder if config.tied else start.decoder[0].T) + bias
    out = out.relu() if config.output == "relu" else out
    ((out - x) ** 2 * torch.tensor(law.importance)).sum(1).mean().backward()
    moved = after.encoder[0] - start.encoder[0]
    clear = encoder.grad.abs() > 1e-3  # Adam's first step is the sign of the gradient
    assert clear.any() and torch.equal(moved[clear].sign(), -encoder.grad[clear].sign())


def test_a_model_does_not_depend_on_what_it_is_trained_beside() -> None:
    law = Features.uniform(8, 0.1)
    alone, beside = train(ToyConfig(8, 3), law, [5], QUICK), train(ToyConfig(8, 3), law, [1, 5, 9], QUICK)
    assert torch.allclose(alone.encoder[0], beside.encoder[1], atol=1e-4)


def test_five_sparse_features_form_a_pentagon_that_uses_both_dimensions() -> None:
    models = train(ToyConfig(5, 2), Features.uniform(5, 0.03), range(4), Schedule(1500, 512, 1e-2))
    geometry = Geometry.of(models)
    assert torch.allclose(geometry.capacity, torch.tensor(2.0, dtype=torch.float64), rtol=0.02)
    best = int((geometry.dimensionality - 0.4).abs().amax(1).argmin())
    assert torch.allclose(geometry.dimensionality[best], torch.tensor(0.4, dtype=torch.float64), atol=0.03)
    assert geometry.level()[best] == ["pentagon"] * 5 and geometry.clusters(best) == [[0, 1, 2, 3, 4]]


@given(st.integers(2, 10), st.integers(1, 6), st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_dimensions_never_exceed_units_nor_coherence_fall_below_welch(n: int, m: int, seed: int) -> None:
    weight = torch.randn(3, m, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    geometry = Geometry(weight)
    assert (geometry.capacity <= m + 1e-9).all()
    assert (geometry.coherence >= geometry.welch - 1e-9).all()


def test_new_features_are_placed_where_they_interfere_least() -> None:
    atoms = torch.zeros(6, 4)
    atoms[:3, :3] = torch.eye(3)
    placed = pack(atoms, torch.ones(6), 6)
    assert torch.allclose(placed.norm(dim=1), torch.ones(6, dtype=torch.float64))
    assert float(((placed @ placed.T) - torch.eye(6)).relu().max()) < 0.02  # six directions fit in six units
    held = pack(atoms, torch.ones(6), 6, hold=True)
    assert torch.equal(held[:3, :4].float(), atoms[:3])  # what was laid out stays where it was
    assert float(((held @ held.T) - torch.eye(6)).relu().max()) < 0.02
    with pytest.raises(BadOption, match="below"):
        pack(atoms, torch.ones(6), 3)


def test_saved_models_come_back_and_truncated_files_are_named(tmp_path) -> None:
    models = initial(ToyConfig(5, 2), [0, 1])
    path = save(models, tmp_path / "toy.safetensors")
    assert torch.equal(load(path, models.config).encoder, models.encoder)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(CorruptFile):
        load(path, models.config)


def test_overlap_deals_features_out() -> None:
    masks = overlap(2, 8, 8)
    assert masks.sum(1).tolist() == [16, 16] and int((masks[0] & masks[1]).sum()) == 8


def test_phases_come_in_the_published_order() -> None:
    from featalign.toy import phase_diagram

    diagram = phase_diagram((1.0, 0.05), (0.1, 1.0, 10.0), seeds=3, schedule=Schedule(800, 256, 2e-2))
    assert diagram.phase[0, 0] == 0 and diagram.phase[0, -1] == 2  # dense: dropped, then dedicated
    assert (diagram.phase[1] == 1).all()  # sparse: superposed
    assert np.isfinite(diagram.norm).all()


def test_words_are_features(tmp_path) -> None:
    from featalign.toy import word_presence

    words = word_presence({"a": "the cat sat. the dog ran! cat and dog. the end.", "b": "dog sat; the cat ran."}, 4, 1)
    assert len(words.vocabulary) == 4 and set(words.vocabulary) <= {"cat", "dog", "sat", "ran"}
    assert set(words.train.unique().tolist()) <= {0.0, 1.0} and (words.train.sum(1) > 0).all()


def test_models_of_unequal_shape_do_not_stack() -> None:
    with pytest.raises(SpaceMismatch, match="cannot be one batch"):
        ToyModels.stack([initial(ToyConfig(5, 2), [0]), initial(ToyConfig(5, 3), [0])])
