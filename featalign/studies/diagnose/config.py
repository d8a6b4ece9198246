"""What determines a diagnosis: frozen dataclasses, checked strictly, written to and read from TOML."""

from __future__ import annotations

from dataclasses import dataclass

from featalign import options as typed
from featalign.errors import BadOption

MEASURED = 8000  # rows that measures are taken on


@dataclass(frozen=True)
class DiagnoseConfig:
    """How a network is diagnosed, wherever it came from.

    Attributes:
        spaces: names of hidden spaces; empty means all that can be read.
        seeds: of the dictionaries; two at least, or nothing can be said about superposition.
        width: latents; 0 means the default for the size, capped by the data. Narrower than a layer only if asked for.
        k: active latents per sample; 0 means the default for the width.
        steps: of training; 0 means what the size allows.
        sweep_steps: of each of the smaller trainings along width and sparsity; 0 leaves the sweep out.
        samples: inputs looked at.
        held_out: share of the inputs on which everything is measured and no dictionary is trained, where no inputs are
            given for that; 0 measures on the training inputs, and the page says so.
        draws: of the control with shuffled weights, whose spread a difference from it must exceed.
        firing_rate: share of samples below which units and latents are left out of rankings and means.
        device: where the network runs, such as cuda; none leaves it where it is.
    """

    spaces: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0, 1)
    width: int = 0
    k: float = 0.0
    steps: int = 0
    sweep_steps: int = 150
    samples: int = 12_000
    held_out: float = 0.2
    draws: int = 3
    firing_rate: float = 0.002
    device: str | None = None

    def __post_init__(self) -> None:
        typed.check(self)
        for name, low in (("width", 0), ("k", 0), ("steps", 0), ("sweep_steps", 0), ("samples", 1), ("draws", 1)):
            if getattr(self, name) < low:
                raise BadOption(f"{name} = {getattr(self, name)}; give at least {low}")
        for name in ("held_out", "firing_rate"):
            if not 0 <= getattr(self, name) < 1:
                raise BadOption(f"{name} = {getattr(self, name)}; give a share from 0 to below 1")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise BadOption(f"seeds = {self.seeds}; give different whole numbers, two at least")


@dataclass(frozen=True)
class DiagnoseRunConfig(DiagnoseConfig):
    """Everything that decides the numbers of `featalign diagnose`.

    Attributes:
        dataset: where inputs and targets come from, and what the network is trained on where none is given.
        model: file of weights or folder of a network; empty means one that is trained on the data set.
        run: folder of a comparison whose first client is diagnosed.
        texts: file with one text per line, inputs of a language model.
    """

    dataset: str = "digits"
    model: str = ""
    run: str = ""
    texts: str = ""
