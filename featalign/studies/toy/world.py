"""What a toy comparison is run on: the laws and samples that follow from its settings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from featalign.studies.toy.config import ToySettings
from featalign.toy.features import Features, overlap
from featalign.toy.models import ToyConfig
from featalign.toy.training import Schedule
from featalign.toy.words import word_presence

PROBE = 8192  # shared inputs for matching, per-client inputs for regression, and inputs for calibration
TEST = 20_000


@dataclass(frozen=True)
class World:
    """Laws and samples: the union's law, each client's law, probe, own and test inputs.

    Attributes:
        config, schedule: of the clients.
        law, client_laws: of all features, and of each client's.
        own, probe, test: inputs `[samples, n]`; own ones by client.
        masks: which client has which feature, `[clients, n]`.
        k: active latents per sample of the dictionaries.
        samples: activations that each dictionary is trained on.
        words: names of the features, where they have any.
    """

    config: ToyConfig
    schedule: Schedule
    law: Any
    client_laws: list[Any]
    own: list[torch.Tensor]
    probe: torch.Tensor
    test: torch.Tensor
    masks: torch.Tensor
    k: float
    samples: int
    words: tuple[str, ...] = ()


def world_of(settings: ToySettings, texts: Path | str | None = None, progress: bool = False) -> World:
    """The world of the settings; `texts` is a folder of plain-text files to take words from."""
    return words_world(settings, texts, progress) if settings.data == "words" else feature_world(settings)


def feature_world(settings: ToySettings) -> World:
    """Synthetic features."""
    law = Features.uniform(settings.n, settings.density)
    masks = overlap(settings.clients, (settings.n - settings.common) // settings.clients, settings.common)
    laws = [law.restricted(mask) for mask in masks]
    draw = [torch.Generator().manual_seed(10_000 + index) for index in range(settings.clients + 2)]
    return World(
        _model(settings), _schedule(settings), law, laws,
        [each.sample(PROBE, g) for each, g in zip(laws, draw[2:])], law.sample(PROBE, draw[0]),
        law.sample(TEST, draw[1]), masks,
        max(2, round(3 * settings.density * float(masks.sum(1).float().mean()))), 20_000,
    )  # fmt: skip


def words_world(settings: ToySettings, texts: Path | str | None, progress: bool) -> World:
    """Word presence in sentences; raises `DataUnavailable` where there are no texts."""
    from featalign.data.text import shakespeare

    words = word_presence(shakespeare(folder=texts, progress=progress), settings.n)
    rows = [torch.arange(len(words.train))] * settings.clients
    if settings.split == "books":
        rows = [torch.nonzero(words.work % settings.clients == index).flatten() for index in range(settings.clients)]
    draw = torch.Generator().manual_seed(10_000)
    return World(
        _model(settings), _schedule(settings), words.batches(), [words.batches(each) for each in rows],
        [words.batches(each)(2 * PROBE, draw) for each in rows], words.batches()(2 * PROBE, draw), words.test,
        torch.ones(settings.clients, settings.n, dtype=torch.bool), 4, 60_000, words.vocabulary,
    )  # fmt: skip


def _model(settings: ToySettings) -> ToyConfig:
    return ToyConfig(settings.n, settings.m, hidden=settings.hidden, tied=settings.tied)


def _schedule(settings: ToySettings) -> Schedule:
    return Schedule(settings.steps, 256, 5e-3)
