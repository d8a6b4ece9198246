"""What determines a match: frozen dataclasses, checked strictly, written to and read from TOML."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from featalign import options as typed
from featalign import storage
from featalign.align.correspondence import Rule
from featalign.align.geometry import GEOMETRIES
from featalign.errors import BadOption

WITNESSES = ("", "crosscoder")


@dataclass(frozen=True)
class MatchConfig(Rule):
    """How latents are matched, wherever the bases came from; what counts as a pair is a `Rule`'s.

    Attributes:
        geometry: what is compared without inputs: cosine (of decoders), gromov (of their Gram matrices), auto.
        witness: crosscoder trains one dictionary of all clients as a second witness; empty for none.
        architecture: registered name, of dictionaries trained here.
        width: their latents; 0 means the default for the size, and a dictionary narrower than its layer is refused.
        k: their active latents per row; 0 means the default for the layer.
        steps: of their training; 0 means what the size asks for.
        rows: rows of activations that they are trained on, at most.
        held_out: share of the inputs that they are not trained on, on which everything is measured then.
        cards: inputs that the page's cards look through, at most; 0 for no cards.
        seed: of everything that is drawn.
        device: where networks run, such as cuda; none leaves them where they are.
    """

    geometry: str = "auto"
    witness: str = ""
    architecture: str = "topk"
    width: int = 0
    k: float = 0.0
    steps: int = 0
    rows: int = 200_000
    held_out: float = 0.2
    cards: int = 2_000
    seed: int = 0
    device: str | None = None

    def __post_init__(self) -> None:
        typed.check(self)
        super().__post_init__()
        for name, low in (("width", 0), ("k", 0), ("steps", 0), ("rows", 32), ("cards", 0), ("seed", 0)):
            if getattr(self, name) < low:
                raise BadOption(f"{name} = {getattr(self, name)}; give at least {low}")
        if not 0 < self.held_out < 1:
            raise BadOption(f"held_out = {self.held_out}; give a share between 0 and 1")
        for name, choices in (("geometry", GEOMETRIES), ("witness", WITNESSES)):
            if getattr(self, name) not in choices:
                shown = ", ".join(choice or "none (empty)" for choice in choices)
                raise BadOption(f"{name} = '{getattr(self, name)}'; choices: {shown}")


@dataclass(frozen=True)
class MatchRunConfig(MatchConfig):
    """Everything that decides the numbers of `featalign match`.

    Attributes:
        bases: folders of dictionaries, or releases of sae-lens as release/sae_id.
        models: folders of language models: one for all bases, or one for each.
        texts: file with one text per line, read by both.
        sites: where activations are read: one for all bases, or one for each; several where dictionaries are trained.
    """

    bases: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    texts: str = ""
    sites: tuple[str, ...] = ()

    @classmethod
    def from_toml(cls, path: Path | str) -> Self:
        """Read a configuration; raises `CorruptFile`, or `BadOption` with the offending key."""
        return typed.read(cls, storage.read_toml(path), f"'{path}'")

    def changed(self, **values: Any) -> Self:
        """A copy with some options replaced."""
        return dataclasses.replace(self, **values)
