"""What data carry is said and kept to; stores train like tensors; metrics reach whoever listens."""

import pytest
import torch
from torch import nn

from featalign import dictionaries as fd
from featalign import tracking
from featalign.errors import DictionaryError
from featalign.spaces import ActivationStore


@pytest.fixture(scope="module")
def x():
    return torch.randn(900, 12, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def store(x, tmp_path):
    module = nn.Sequential(nn.Identity(), nn.Linear(12, 2))
    return ActivationStore.build(module, x, "0", tmp_path / "s", dtype="float32", shard_rows=250, progress=False)


def test_a_store_trains_the_same_dictionary_as_its_rows(x, store):
    ours, theirs = (fd.train(rows, 24, k=3, steps=30, seed=1) for rows in (store, x))
    assert torch.equal(ours.W_dec, theirs.W_dec) and ours.quality == theirs.quality
    assert ours.metadata["hook_name"] == "0" and "hook_name" not in theirs.metadata
    assert fd.assess(ours, store, store) == fd.assess(ours, x, x)
    assert torch.equal(fd.pca(store).atoms, fd.pca(x).atoms)
    with pytest.raises(DictionaryError, match="needs targets=: a store"):
        fd.train(store, 24, "transcoder", 3, steps=3)


def test_steps_pass_over_all_rows_at_least_once(monkeypatch):
    from featalign.dictionaries import training

    monkeypatch.setattr(training.preflight, "inspect", lambda *args: None)
    rows = torch.zeros(1, 8).expand(1_000_000, 8)
    plan = training.resolve(rows, "topk", {})
    assert plan.steps * plan.batch_size >= len(rows) - 4096


def test_the_budget_is_in_the_quality_and_a_cap_is_said(x, tmp_path):
    with pytest.warns(fd.DictionaryWarning, match="width lowered to 48"):
        found = fd.train(x, 400, k=3, steps=3)
    assert found.quality.trained_on == 810 and found.quality.capped_from == 400
    assert (
        found.budget.startswith("810 rows of activations, 16.9 rows") and "capped by the data from 400" in found.budget
    )
    assert fd.load(found.save(tmp_path / "d")).budget == found.budget
    plain = fd.train(x, 24, k=3, steps=3)
    assert "capped" not in plain.budget and plain.quality.capped_from == 0


def test_a_dictionary_narrower_than_its_layer_is_refused_unless_asked_for(x):
    few = x[:100]
    with pytest.raises(DictionaryError, match=r"carry 7 latents .* the layer has 12 units; pass 150 rows") as error:
        fd.train(few, steps=3)
    assert "\n" not in str(error.value)
    for asked in ({"allow_narrow": True}, {"width": 5}):
        found = fd.train(few, steps=3, **asked)
        assert found.width < 12 and "narrower than its layer of 12 units" in found.budget


def test_one_callback_receives_metrics_by_step_also_of_several_dictionaries(x):
    seen = []
    found = fd.train(x, 24, k=3, steps=50, log=lambda metrics, step: seen.append((step, metrics)))
    assert [step for step, _ in seen] == found.history["step"].tolist()
    assert [metrics["loss"] for _, metrics in seen] == found.history["loss"].tolist()
    seen.clear()
    facts = [{"client": name, "space": "fc1"} for name in "ab"]
    fd.train_many([x, x], seeds=(0, 1), metadata=facts, log=lambda m, s: seen.append(m), width=24, k=3, steps=3)
    assert {key.split("/")[0] for metrics in seen for key in metrics} == {f"{c}.fc1.{s}" for c in "ab" for s in (0, 1)}


def test_callbacks_for_wandb_and_tensorboard_file_every_metric():
    class Run(list):
        def log(self, metrics, step):
            self.append((metrics, step))

        def add_scalar(self, name, value, global_step):
            self.append((name, value, global_step))

    run, writer = Run(), Run()
    tracking.prefixed(tracking.to_wandb(run), "a")({"loss": 1.0}, 3)
    tracking.to_tensorboard(writer)({"loss": 1.0, "l0": 2.0}, 3)
    assert run == [({"a/loss": 1.0}, 3)] and writer == [("loss", 1.0, 3), ("l0", 2.0, 3)]
    assert tracking.prefixed(None, "a") is None
