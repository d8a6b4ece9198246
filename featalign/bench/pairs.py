"""Pairs of language models that the benchmarks share: two editions of Shakespeare, or two seeds on one."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from featalign.errors import BadOption

if TYPE_CHECKING:
    import torch
    from torch import nn

    from featalign.clients import DecoderConfig, TrainConfig
    from featalign.federated import Federation

PAIRS = ("editions", "seeds")
VERSION = 2  # raise it when a change to training changes the weights


def corpora(pair: str, held_out: float = 0.05) -> tuple[list[torch.Tensor], torch.Tensor, list[str]]:
    """Training tokens of both clients, held-out tokens of both joined, and the alphabet.

    `editions`: the works that exist in modern spelling and in that of the First Folio, one edition per client.
    `seeds`: modern spelling for both. Raises `BadOption` for another name.
    """
    import torch

    from featalign.data.text import encode, shakespeare

    if pair not in PAIRS:
        raise BadOption(f"unknown pair '{pair}'; choices: {', '.join(PAIRS)}")
    modern, folio = shakespeare("modern"), shakespeare("folio")
    shared = sorted(set(modern) & set(folio))
    texts = ["".join(edition[name] for name in shared) for edition in (modern, folio if pair == "editions" else modern)]
    alphabet = sorted(set("".join(texts)))
    train, test = [], []
    for text in texts:
        tokens = encode(text, alphabet)
        cut = int(len(tokens) * (1 - held_out))
        train.append(tokens[:cut])
        test.append(tokens[cut:])
    return train, torch.cat(test), alphabet


def language_model(
    config: DecoderConfig, tokens: torch.Tensor, steps: int, seed: int, progress: bool = True
) -> nn.Module:
    """A trained character model, cached by everything that determines its weights."""
    from featalign import storage
    from featalign.clients import build, train
    from featalign.data.text import Stream

    digest = hashlib.sha256(tokens.numpy().tobytes()).hexdigest()
    identity = {"model": config.to_dict(), "tokens": digest, "steps": steps, "seed": seed, "version": VERSION}
    path = storage.cache_folder() / "decoders" / f"{storage.fingerprint(identity)}.safetensors"
    module = build(config, seed)
    if path.exists():
        module.load_state_dict(storage.load_tensors(path), strict=False)
        return module.eval()
    recipe = training(steps)
    train(module, Stream(tokens, config.context), None, "next-token", recipe, seed, progress, "decoder")
    storage.save_tensors(path, {name: t for name, t in module.state_dict().items() if t.is_floating_point()})
    return module.eval()


def training(steps: int, **changed: Any) -> TrainConfig:
    """How the character models train; the learning rate runs through one cycle unless `changed`."""
    from featalign.clients import TrainConfig

    usual = {"lr": 3e-3, "weight_decay": 0.01, "optimizer": "adam", "schedule": "one-cycle", "warmup": 0.1}
    return TrainConfig(**{"batch_size": 32, "steps": steps, **usual, **changed})


def language_federation(
    seed: int = 0, steps: int = 100, tokens: int = 300_000, probe: int = 400, held_out: int = 128, **options: int
) -> Federation:
    """Two clients with an edition of Shakespeare each, that train a character transformer `steps` steps a round.

    Each holds the first `tokens` characters of its edition's training text. The probe is `probe` windows of both
    clients' training text; `held_out` windows of other text only measure.
    """
    import torch

    from featalign.data.text import Stream, windows
    from featalign.federated import Federation

    train, test, alphabet = corpora("editions")
    config = decoder(len(alphabet), **options)
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.cat([windows(text, config.context, probe // 2, generator) for text in train])[:, :-1]
    scored = windows(test, config.context, held_out, generator)
    own = [Stream(text[:tokens], config.context) for text in train]
    recipe = training(steps, schedule="constant", lr=1e-3)
    names = ("modern", "folio")
    return Federation.gather(own, config, inputs, (scored[:, :-1], scored[:, 1:]), "next-token", names, recipe)


def decoder(vocabulary: int, **options: int) -> DecoderConfig:
    """Width 48, 2 blocks, 4 heads unless `options` say otherwise."""
    from featalign.clients import DecoderConfig

    shape: dict[str, Any] = {"vocabulary": vocabulary, "width": 48, "hidden": 192, "context": 48, **options}
    return DecoderConfig(**shape)


def language_pair(
    pair: str = "editions",
    steps: int = 1000,
    probe: int = 64,
    held_out: int = 128,
    seed: int = 0,
    progress: bool = True,
    **options: int,
) -> tuple[list[nn.Module], torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """Two character transformers (width 48, 2 blocks, 4 heads unless `options` say otherwise), probe and test set.

    The probe is `probe` windows of both clients' training text; `held_out` windows of other text only measure.
    """
    import torch

    from featalign.data.text import windows

    train, test, alphabet = corpora(pair)
    config = decoder(len(alphabet), **options)
    modules = [language_model(config, tokens, steps, 2 * seed + k, progress) for k, tokens in enumerate(train)]
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.cat([windows(tokens, config.context, probe // 2, generator) for tokens in train])[:, :-1]
    scored = windows(test, config.context, held_out, generator)
    return modules, inputs, (scored[:, :-1], scored[:, 1:])
