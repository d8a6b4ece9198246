"""Pictures in training: mirrored, shifted, coarse; and the options of the loop that go with them."""

import pytest
import torch
from torch.nn import functional as F

from featalign.clients import MLPConfig, ResNet20Config, TrainConfig, VGGConfig, build, train
from featalign.clients.augmentation import augmented, halved
from featalign.data import Batch, Classification
from featalign.errors import BadOption

X = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(64) % 2


def generator():
    return torch.Generator().manual_seed(1)


def test_nothing_asked_for_nothing_changed():
    batch = Batch((X,), {}, Y)
    assert augmented(batch, False, 0, generator()) is batch


def test_mirrored_pictures_are_the_pictures_or_their_mirrors():
    found = augmented(Batch((X,), {}, Y), True, 0, generator())
    same = (found.args[0] == X).flatten(1).all(1)
    mirror = (found.args[0] == X.flip(3)).flatten(1).all(1)
    assert bool((same ^ mirror).all()) and 16 < int(mirror.sum()) < 48 and torch.equal(found.targets, Y)


def test_shifted_pictures_are_cut_from_the_padded_ones():
    found = augmented(Batch((X,), {}, Y), False, 2, generator()).args[0]
    padded, seen = F.pad(X, (2, 2, 2, 2)), set()
    for index in range(len(X)):
        places = [
            (y, x)
            for y in range(5)
            for x in range(5)
            if torch.equal(found[index], padded[index, :, y : y + 8, x : x + 8])
        ]
        assert len(places) == 1
        seen.add(places[0])
    assert len(seen) > 15  # of 25


def test_coarse_pictures_are_averages():
    assert torch.allclose(halved(Batch((X,), {}, Y)).args[0][0, 0, 0, 0], X[0, 0, :2, :2].mean())


@pytest.mark.parametrize("inputs", [torch.randn(4, 9), torch.arange(12).reshape(3, 4)])
def test_other_inputs_are_refused(inputs):
    with pytest.raises(BadOption, match="leave them out"):
        augmented(Batch((inputs,)), True, 0, generator())


@pytest.mark.parametrize("config", [ResNet20Config(width=0.5), VGGConfig(width=1 / 16, size=8)])
def test_the_whole_recipe_trains_and_is_reproducible(config):
    recipe = TrainConfig(
        epochs=2, batch_size=16, lr=0.05, momentum=0.9, schedule="one-cycle", flip=True, shift=1, coarse=0.5,
        label_smoothing=0.1, channels_last=True,
    )  # fmt: skip
    runs = [build(config, 0), build(config, 0)]
    losses = [train(run, X, Y, None, recipe, progress=False) for run in runs]
    assert losses[0] == losses[1]
    for a, b in zip(runs[0].parameters(), runs[1].parameters()):
        assert torch.equal(a, b) and a.is_contiguous()


def test_options_that_came_later_leave_older_caches_valid():
    assert set(TrainConfig().to_dict()) == {
        "epochs", "batch_size", "lr", "momentum", "weight_decay", "optimizer", "schedule",
    }  # fmt: skip
    assert TrainConfig(shift=2).to_dict()["shift"] == 2


def test_sgds_momentum_is_kept_by_one_cycle():
    seen = []
    module = build(MLPConfig(4, (3,), 2))
    original = torch.optim.SGD.step

    def step(self, *args, **kwargs):
        seen.append(self.param_groups[0]["momentum"])
        return original(self, *args, **kwargs)

    torch.optim.SGD.step = step
    try:
        recipe = TrainConfig(epochs=2, batch_size=16, momentum=0.7, schedule="one-cycle")
        train(module, torch.randn(64, 4), Y, None, recipe, progress=False)
    finally:
        torch.optim.SGD.step = original
    assert set(seen) == {0.7}


def test_smoothed_labels():
    logits = torch.randn(5, 3)
    labels = torch.tensor([0, 1, 2, 0, 1])
    expected = F.cross_entropy(logits, labels, reduction="none", label_smoothing=0.2)
    assert torch.allclose(Classification().smoothed_loss(logits, labels, 0.2), expected)
    with pytest.raises(BadOption, match="label_smoothing"):
        train(build(MLPConfig(4, (3,), 1)), torch.randn(8, 4), torch.randn(8), "regression",
              TrainConfig(epochs=1, label_smoothing=0.1), progress=False)  # fmt: skip


@pytest.mark.parametrize("options", [{"shift": -1}, {"coarse": 1.5}, {"label_smoothing": 1.0}, {"shift": 0.5}])
def test_bad_options_are_named(options):
    with pytest.raises(BadOption):
        TrainConfig(**options)
