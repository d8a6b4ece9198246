"""What a toy comparison is run on: its settings, and the laws and samples that follow from them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from featalign.errors import BadOption
from featalign.toy.features import Features, overlap
from featalign.toy.models import ToyConfig
from featalign.toy.training import Schedule
from featalign.toy.words import word_presence
from featalign.toy_fusion.methods import METHODS

PROBE = 8192  # shared inputs for matching, per-client inputs for regression, and inputs for calibration
TEST = 20000
SAME_WIDTH = tuple(name for name in METHODS if name != "union")


@dataclass(frozen=True)
class ToySettings:
    """Everything that decides a comparison.

    Attributes:
        data: 'features' (synthetic) or 'words' (word presence in Shakespeare's sentences).
        n, m: features and hidden units; 0 takes 24 and 8, for words 256 and 32. `density` of each synthetic feature.
        clients: how many; `shared` features belong to all and the rest is dealt out evenly (None: all are shared).
        independent: whether clients start from their own initialisations.
        hidden: 'none' or 'relu'; `tied` decoders.
        split: for words, 'seeds' (all clients see all books) or 'books' (each sees its own).
        width: units of the fused model; None keeps m.
        seeds, first_seed: repetitions, and the number of the first.
        methods: names in the registry; None takes those that fit.
        steps, sae_steps: of training clients and dictionaries.
    """

    data: str = "features"
    n: int = 0
    m: int = 0
    density: float = 0.04
    clients: int = 2
    shared: int | None = None
    independent: bool = True
    hidden: str = "none"
    tied: bool = True
    split: str = "seeds"
    width: int | None = None
    seeds: int = 5
    first_seed: int = 0
    methods: tuple[str, ...] | None = None
    steps: int = 3000
    sae_steps: int | None = None

    def __post_init__(self) -> None:
        if self.data not in {"features", "words"}:
            raise BadOption(f"data '{self.data}'; choices: features, words")
        usual = {"n": 256, "m": 32} if self.data == "words" else {"n": 24, "m": 8}
        for name, value in usual.items():
            object.__setattr__(self, name, getattr(self, name) or value)
        if self.split not in {"seeds", "books"}:
            raise BadOption(f"split '{self.split}'; choices: seeds, books")
        if self.clients < 2 or self.seeds < 1:
            raise BadOption(f"{self.clients} clients and {self.seeds} seeds; a comparison wants 2 clients and 1 seed")
        if not 0 < self.density <= 1:
            raise BadOption(f"density {self.density}; a probability in (0, 1]")
        if self.shared is not None and (self.n - self.shared) % self.clients:
            raise BadOption(f"{self.n - self.shared} own features cannot be dealt evenly to {self.clients} clients")
        for name in self.methods or ():
            METHODS[name]

    @property
    def fused_width(self) -> int:
        return self.width or self.m

    @property
    def latents(self) -> int:
        """Dictionary width: 1.33 times the features, the slack that finds them all."""
        return max(self.n + 4, round(4 * self.n / 3))

    @property
    def chosen(self) -> tuple[str, ...]:
        """Methods that will run."""
        if self.methods is not None:
            return self.methods
        return (*SAME_WIDTH, "union") if self.fused_width == self.m else ("union",)


@dataclass(frozen=True)
class World:
    """Laws and samples: the union's law, each client's law, probe, own and test inputs."""

    config: ToyConfig
    schedule: Schedule
    law: Any
    client_laws: list[Any]
    own: list[torch.Tensor]
    probe: torch.Tensor
    test: torch.Tensor
    masks: torch.Tensor
    k: float
    words: tuple[str, ...] = ()


def feature_world(settings: ToySettings) -> World:
    law = Features.uniform(settings.n, settings.density)
    shared = settings.n if settings.shared is None else settings.shared
    masks = overlap(settings.clients, (settings.n - shared) // settings.clients, shared)
    laws = [law.restricted(mask) for mask in masks]
    draw = [torch.Generator().manual_seed(10_000 + index) for index in range(settings.clients + 2)]
    return World(
        ToyConfig(settings.n, settings.m, hidden=settings.hidden, tied=settings.tied),
        Schedule(settings.steps, 256, 5e-3),
        law,
        laws,
        [each.sample(PROBE, g) for each, g in zip(laws, draw[2:])],
        law.sample(PROBE, draw[0]),
        law.sample(TEST, draw[1]),
        masks,
        max(2, round(3 * settings.density * float(masks.sum(1).float().mean()))),
    )


def words_world(settings: ToySettings, texts: Path | str | None, progress: bool) -> World:
    from featalign.data.text import shakespeare

    words = word_presence(shakespeare(folder=texts, progress=progress), settings.n)
    rows = [torch.arange(len(words.train))] * settings.clients
    if settings.split == "books":
        rows = [torch.nonzero(words.work % settings.clients == index).flatten() for index in range(settings.clients)]
    draw = torch.Generator().manual_seed(10_000)
    return World(
        ToyConfig(settings.n, settings.m, hidden=settings.hidden, tied=settings.tied),
        Schedule(settings.steps, 256, 5e-3),
        words.batches(),
        [words.batches(each) for each in rows],
        [words.batches(each)(2 * PROBE, draw) for each in rows],
        words.batches()(2 * PROBE, draw),
        words.test,
        torch.ones(settings.clients, settings.n, dtype=torch.bool),
        4,
        words.vocabulary,
    )
