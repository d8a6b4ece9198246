"""Registered networks: shapes, round trips of their configurations, any family on any data it can read."""

import sys
from dataclasses import dataclass
from math import prod

import pytest
import torch
from torch import nn

from featalign import clients, data
from featalign.clients import (
    Conv1dConfig,
    DecoderConfig,
    MLPConfig,
    ModelConfig,
    ResNet18Config,
    ResNet20Config,
    VGGConfig,
    ViTConfig,
    build,
    from_dict,
    models,
)
from featalign.data import Batch, Classification, MultiLabel, Regression
from featalign.data.datasets import Dataset
from featalign.errors import BadOption, UnknownName
from featalign.spaces import check, trace

SMALL = [
    VGGConfig(width=1 / 16),
    VGGConfig(width=1 / 16, batch_norm=True, size=16, bias=False),
    VGGConfig(width=1 / 16, layer_norm=True, size=16),
    ResNet20Config(width=0.25),
    ResNet20Config(width=0.25, norm="none"),
    ResNet18Config(width=1 / 16, norm="layer"),
    ViTConfig(width=16, heads=2, depth=1, hidden=20),
]


def pictures(shape, classes=2, count=6):
    x, y = torch.randn(count, *shape), torch.arange(count) % classes
    return Dataset("x", x, y, x, y, tuple("abcdefghij"[:classes]))


@pytest.mark.parametrize("config", SMALL, ids=lambda c: f"{c.to_dict()['model']}-{getattr(c, 'norm', '')}")
def test_image_models(config):
    side = getattr(config, "size", 32)
    x = torch.randn(3, 3, side, side)
    a, b = build(config, 1).eval(), build(config, 1).eval()
    assert a(x).shape == (3, 10) and torch.equal(a(x), b(x))
    assert not torch.equal(a(x), build(config, 2).eval()(x))
    assert from_dict(config.to_dict()) == config and hash(config)
    assert type(config).for_dataset(pictures((3, side, side))).outputs == 2
    a.train()(x).square().mean().backward()
    assert all(p.grad is not None for p in a.parameters())


@pytest.mark.parametrize("shape", [(64,), (784,), (1, 28, 28), (3, 16, 16)])
@pytest.mark.parametrize("name", ["mlp", "vgg11", "resnet20", "resnet18", "vit", "encoder", "conv1d"])
def test_any_family_on_any_data_set(name, shape):
    if name == "conv1d" and len(shape) == 3:
        pytest.skip("pictures are no sequences")
    small = {"mlp": {"hidden": (8,)}, "vit": {"width": 16}, "encoder": {"width": 16}, "conv1d": {"width": 4}}
    dataset = pictures(shape)
    config = models[name].for_dataset(dataset, **small.get(name, {"width": 1 / 16}))
    module = build(config).eval()
    assert module(dataset.train_inputs).shape == (6, 2)
    assert from_dict(config.to_dict()) == config
    assert isinstance(config.recipe(1000), clients.TrainConfig)


@pytest.mark.parametrize("name", ["vgg11", "vit", "encoder", "resnet20", "conv1d"])
def test_networks_that_unflatten_their_inputs_are_traced(name):
    dataset = pictures((64,))
    config = models[name].for_dataset(dataset, width=8 if name in ("vit", "encoder", "conv1d") else 1 / 8)
    module, x = build(config).eval(), dataset.train_inputs[:2]
    assert check(trace(module, x), module, x).error <= 1e-5


def test_a_stem_of_convolutions_gives_as_many_tokens_as_patches():
    x = torch.randn(3, 3, 32, 32)
    for patch in (2, 4, 8):
        plain = build(models["vit"](patch=patch, width=16, depth=1))
        stem = build(models["vit"](patch=patch, width=16, depth=1, stem="convolutions")).eval()
        assert stem.position.shape == plain.position.shape and stem(x).shape == (3, 10)
        assert stem.embed(x).shape == plain.embed(x).shape
    assert "stem" not in models["vit"]().to_dict()  # clients cached before it came stay valid
    with pytest.raises(BadOption, match="power of two"):
        models["vit"](size=30, patch=6, width=16, stem="convolutions")
    with pytest.raises(BadOption, match="choices: patches, convolutions"):
        models["vit"](stem="hybrid")


def test_digits_under_another_family_learn():
    digits = data.load("digits")
    config = models["conv1d"].for_dataset(digits, width=16)
    module = build(config)
    recipe = config.recipe(1442, epochs=3)
    clients.train(module, digits.train_inputs, digits.train_labels, None, recipe, progress=False)
    assert clients.evaluate(module, (digits.test_inputs, digits.test_labels))["accuracy"] > 0.5


def test_outputs_come_from_the_task():
    x = torch.randn(9, 5)
    labels = torch.arange(9) % 2
    assert MLPConfig.for_task(Batch((x,), {}, labels), Classification()).outputs == 2
    assert MLPConfig.for_task(Batch((x,), {}, labels), Classification(), outputs=1).outputs == 1
    assert MLPConfig.for_task(Batch((x,), {}, torch.randn(9)), Regression()).outputs == 1
    assert MLPConfig.for_task(Batch((x,), {}, torch.randn(9, 3) > 0), MultiLabel()).outputs == 3
    sequences = torch.randn(4, 4, 30)
    per_position = Conv1dConfig.for_task(
        Batch((sequences,), {}, torch.randint(3, (4, 30))), Classification(("a", "b", "c"))
    )
    assert build(per_position)(sequences).shape == (4, 3, 30)
    pooled = Conv1dConfig.for_task(Batch((sequences,), {}, torch.arange(4)), Classification())
    assert build(pooled)(sequences).shape == (4, 4)
    tokens = torch.randint(11, (2, 6))
    assert DecoderConfig.for_task(Batch((tokens,)), data.NextToken()).context == 6


def test_dilated_convolutions_reach_as_far_as_they_say_and_are_traced():
    config = Conv1dConfig(kernels=(3, 5), dilations=(1, 3), blocks=1, width=6)
    module = build(config).eval()
    x = torch.randn(2, 4, 61)
    check(trace(module, x), module, x)
    moved = x.clone()
    moved[:, :, 30] += 1
    changed = (module(moved) - module(x)).abs().amax((0, 1)) > 1e-7
    reach = 2 * (1 * 1 + 3 * 2)  # two convolutions per block
    assert changed.nonzero().flatten().tolist()[0] >= 30 - reach and changed.nonzero()[-1] <= 30 + reach
    assert changed.sum() > 15


def test_a_family_from_outside_is_one_class(monkeypatch):
    monkeypatch.setattr(models, "_entries", dict(models._entries))

    @models.register("wide")
    @dataclass(frozen=True)
    class WideConfig(ModelConfig):
        inputs: int = 64
        outputs: int = 10

        @classmethod
        def shaped(cls, shape, outputs, **options):
            return cls(prod(shape), outputs, **options)

        def module(self):
            return nn.Sequential(nn.Flatten(), nn.Linear(self.inputs, self.outputs))

    dataset = pictures((1, 4, 4), classes=3, count=12)
    split = data.partition(dataset.train_labels, "iid", 2)
    found = clients.train_clients(dataset, split, "wide", clients.TrainConfig(epochs=1), progress=False, cache=False)
    assert found[0].model(dataset.test_inputs).shape == (12, 3)
    assert from_dict({"model": "wide", "inputs": 3}) == WideConfig(3)
    assert WideConfig().to_dict() == {"model": "wide", "inputs": 64, "outputs": 10}


def test_options_that_came_later_leave_old_keys_alone():
    assert "flat" not in VGGConfig().to_dict() and VGGConfig(channels=1, flat=True).to_dict()["flat"] is True
    assert clients.TrainConfig().to_dict().keys() == {
        *("epochs", "batch_size", "lr", "momentum", "weight_decay", "optimizer", "schedule")
    }
    assert clients.TrainConfig(steps=3).to_dict()["steps"] == 3


def test_bad_configurations():
    assert {"mlp", "vgg11", "resnet20", "resnet18", "vit", "encoder", "decoder", "conv1d"} <= set(models)
    for make in (
        lambda: VGGConfig(width=0.001),
        lambda: ResNet20Config(norm="group"),
        lambda: ResNet18Config(outputs=0),
        lambda: ViTConfig(width=30, heads=4),
        lambda: DecoderConfig(vocabulary=1),
        lambda: Conv1dConfig(kernels=(4, 3)),
        lambda: Conv1dConfig(kernels=(3,), dilations=(1, 2)),
        lambda: Conv1dConfig(width=0),
        lambda: VGGConfig.for_dataset(pictures((63,))),
        lambda: ViTConfig.for_dataset(pictures((3, 8, 6))),
        lambda: DecoderConfig.for_dataset(pictures((3, 8, 8))),
        lambda: Conv1dConfig.for_dataset(pictures((3, 8, 8))),
    ):
        with pytest.raises(BadOption):
            make()
    with pytest.raises(UnknownName, match="vgg11"):
        models["vgg"]


def test_a_newer_transformer_lens_is_refused_in_one_line(monkeypatch):
    """Version 4 has no `HookedTransformer`; nothing else here needs it."""
    import transformer_lens

    monkeypatch.delattr(transformer_lens, "HookedTransformer")
    monkeypatch.setitem(sys.modules, "transformer_lens.HookedTransformer", None)  # the module of that name goes too
    assert build(MLPConfig(4, hidden=(3,)), seed=0)(torch.randn(2, 4)).shape == (2, 10)
    with pytest.raises(BadOption, match=r"pip install 'transformer-lens<4'"):
        build(DecoderConfig(vocabulary=5), seed=0)
