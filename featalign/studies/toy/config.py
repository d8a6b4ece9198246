"""What a toy comparison is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from featalign import options as typed
from featalign.errors import BadOption

USUAL = {"features": {"n": 24, "m": 8}, "words": {"n": 256, "m": 32}}
SHOWN = (
    *("vanilla", "ot-acts", "procrustes", "procrustes-wts", "linear", "cca", "pca", "feature-project", "feature-fold"),
    *("feature-reencode", "random-dictionary", "joint-dictionary", "feature-union"),
)


@dataclass(frozen=True)
class ToySettings:
    """Everything that decides a toy comparison.

    Attributes:
        data: features (synthetic) or words (word presence in Shakespeare's sentences).
        n, m: features and hidden units; 0 takes 24 and 8, for words 256 and 32.
        density: of each synthetic feature.
        clients: how many.
        shared: features that belong to all, the rest being dealt out evenly; none means that all are shared.
        independent: whether clients start from their own initialisations.
        hidden: none or relu.
        tied: whether decoders are the transposed encoders.
        split: for words, seeds (all clients see all books) or books (each sees its own).
        width: units of the fused model; none keeps m.
        seeds, first_seed: repetitions, and the number of the first.
        methods: registered names; empty means those of the published tables that the clients allow.
        options: by method, options that differ from their defaults, such as `{"procrustes": {"center": true}}`.
        steps: of training clients.
        sae_steps: of training dictionaries; none means 1200, for words 3000.
    """

    data: Literal["features", "words"] = "features"
    n: int = 0
    m: int = 0
    density: float = 0.04
    clients: int = 2
    shared: int | None = None
    independent: bool = True
    hidden: Literal["none", "relu"] = "none"
    tied: bool = True
    split: Literal["seeds", "books"] = "seeds"
    width: int | None = None
    seeds: int = 5
    first_seed: int = 0
    methods: tuple[str, ...] = ()
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    steps: int = 3000
    sae_steps: int | None = None

    def __post_init__(self) -> None:
        typed.check(self)
        for name, value in USUAL[self.data].items():
            object.__setattr__(self, name, getattr(self, name) or value)
        if self.clients < 2 or self.seeds < 1:
            raise BadOption(f"{self.clients} clients and {self.seeds} seeds; a comparison wants 2 clients and 1 seed")
        if min(self.n, self.m) < 1:
            raise BadOption(f"{self.n} features in {self.m} units; give at least 1 of each")
        if not 0 < self.density <= 1:
            raise BadOption(f"density {self.density}; a probability in (0, 1]")
        if self.shared is not None and not 0 <= self.shared <= self.n:
            raise BadOption(f"{self.shared} shared features of {self.n}; give between 0 and {self.n}")
        if (self.n - self.common) % self.clients:
            raise BadOption(f"{self.n - self.common} own features cannot be dealt evenly to {self.clients} clients")
        if self.fused_width < self.m:
            raise BadOption(f"a fused width of {self.width} is below the clients' {self.m}; give at least {self.m}")

    @property
    def common(self) -> int:
        """Features that all clients have."""
        return self.n if self.shared is None else self.shared

    @property
    def fused_width(self) -> int:
        """Units of the fused model."""
        return self.width or self.m

    @property
    def latents(self) -> int:
        """Dictionary width: 1.33 times the features, the slack that finds them all."""
        return max(self.n + 4, round(4 * self.n / 3))

    @property
    def dictionary_steps(self) -> int:
        """Steps of training dictionaries."""
        return self.sae_steps or (1200 if self.data == "features" else 3000)
