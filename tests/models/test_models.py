"""The registered networks: shapes, round trips of their configurations, and a decoder that learns."""

from __future__ import annotations

import pytest
import torch
from featalign.clients.decoder import DecoderConfig, encode, next_token_loss, train_decoder, windows
from featalign.clients.resnet import ResNet18Config, ResNet20Config
from featalign.clients.vgg import VGGConfig
from featalign.clients.vit import ViTConfig

from featalign.clients import build, from_dict, models
from featalign.data.datasets import Dataset
from featalign.errors import BadOption

SMALL = [
    VGGConfig(width=1 / 16),
    VGGConfig(width=1 / 16, batch_norm=True, size=16, bias=False),
    ResNet20Config(width=0.25),
    ResNet20Config(width=0.25, norm="none"),
    ResNet18Config(width=1 / 16, norm="layer"),
    ViTConfig(width=16, heads=2, depth=1, hidden=20),
]


@pytest.mark.parametrize("config", SMALL, ids=lambda c: f"{c.to_dict()['model']}-{getattr(c, 'norm', '')}")
def test_image_models(config) -> None:  # type: ignore[no-untyped-def]
    side = getattr(config, "size", 32)
    x = torch.randn(3, 3, side, side)
    a, b = build(config, 1).eval(), build(config, 1).eval()
    assert a(x).shape == (3, 10) and torch.equal(a(x), b(x))
    assert not torch.equal(a(x), build(config, 2).eval()(x))
    assert from_dict(config.to_dict()) == config
    dataset = Dataset("x", x, torch.zeros(3).long(), x, torch.zeros(3).long(), ("a", "b"))
    assert type(config).for_dataset(dataset).outputs == 2
    loss = a.train()(x).square().mean()
    loss.backward()
    assert all(p.grad is not None for p in a.parameters())


def test_bad_configurations() -> None:
    assert {"vgg11", "resnet20", "resnet18", "vit", "decoder"} <= set(models)
    for make in (
        lambda: VGGConfig(width=0.001),
        lambda: ResNet20Config(norm="group"),
        lambda: ResNet18Config(outputs=0),
        lambda: ViTConfig(width=30, heads=4),
        lambda: DecoderConfig(vocabulary=1),
        lambda: windows(torch.arange(5), 10, 1, torch.Generator()),
    ):
        with pytest.raises(BadOption):
            make()


def test_decoder_learns_and_is_reproducible() -> None:
    text = "to be or not to be that is the question " * 20
    alphabet = sorted(set(text))
    tokens = encode(text + "@", alphabet)
    assert len(tokens) == len(text)
    config = DecoderConfig(len(alphabet), context=16, width=24, heads=2, depth=1, hidden=48)
    runs = [build(config, 0), build(config, 0)]
    held = windows(tokens, 16, 20, torch.Generator().manual_seed(9))
    before = next_token_loss(runs[0], held)
    losses = [train_decoder(run, tokens, steps=100, batch_size=16, lr=1e-2, progress=False) for run in runs]
    assert losses[0] == losses[1]
    assert next_token_loss(runs[0], held) < before - 1
