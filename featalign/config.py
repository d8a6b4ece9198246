"""What determines a run: a frozen dataclass, written to and read from TOML."""

from __future__ import annotations

import dataclasses
import tomllib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from featalign import options
from featalign.errors import BadOption, CorruptFile
from featalign.storage import read_text

LARGEST = 100_000  # latents per unit and active latents that nobody means by more

DEFAULT_METHODS = (
    *("vanilla", "ot-acts", "ot-wts", "feature-ot", "feature-fold"),
    *("feature-reexpress", "zip", "feature-zip"),
)


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides the numbers of `featalign compare`.

    Attributes:
        dataset: name of a data set (`featalign data list`).
        folder: folder with the user's copy of it, or empty.
        split: partition scheme: special-label, iid, dirichlet, client-dirichlet, shards, quantity.
        special: the label that only client A holds (special-label).
        alpha: concentration (Dirichlet splits).
        clients: number of clients.
        seeds: number of repetitions; repetition s uses seed s for partition, initialisation, training and probe.
        hidden: widths of the hidden layers; empty means the data set's default.
        epochs: of client training; 0 means the data set's default.
        probe: unlabelled training inputs shared by all clients.
        augment: recipe that extends the probe for the refit and the feature matching: shift-mix, gaussian or none.
        augmented: number of inputs after augmentation.
        mixing: weight of the first client in the headline table, the others sharing the rest; None means equal weights.
        methods: registered names.
        head: target of the output layer in the refit: log-mixture, mean-logits or none.
        class_counts: let the mixture weigh clients by their label counts per class.
        ridge: of the refit, relative to each Gram matrix.
        expansion: dictionary width as a multiple of the units; 0 means the default for the size.
        k: active latents per sample; 0 means the default for the width.
        curve: points of the mixing-weight curve; 0 leaves the curves out.
    """

    dataset: str = "digits"
    folder: str = ""
    split: str = "special-label"
    special: int = 4
    alpha: float = 0.5
    clients: int = 2
    seeds: int = 3
    hidden: tuple[int, ...] = ()
    epochs: int = 0
    probe: int = 400
    augment: str = "shift-mix"
    augmented: int = 10_000
    mixing: float | None = None
    methods: tuple[str, ...] = DEFAULT_METHODS
    head: str = "log-mixture"
    class_counts: bool = False
    ridge: float = 1e-2
    expansion: float = 0.0
    k: float = 0.0
    curve: int = 11

    def __post_init__(self) -> None:
        options.check(self)
        for name, low in (("clients", 1), ("seeds", 1), ("probe", 1), ("augmented", 1), ("epochs", 0), ("curve", 0)):
            if getattr(self, name) < low:
                raise BadOption(f"{name} = {getattr(self, name)}; give at least {low}")
        if any(width < 1 for width in self.hidden):
            raise BadOption(f"hidden = {list(self.hidden)}; every width is at least 1")
        if self.mixing is None:
            object.__setattr__(self, "mixing", 1 / self.clients)
        if not 0 <= self.mixing <= 1:  # type: ignore[operator]
            raise BadOption(f"mixing = {self.mixing}; the weight of the first client lies between 0 and 1")
        if self.ridge <= 0 or self.alpha <= 0:
            raise BadOption(f"ridge = {self.ridge}, alpha = {self.alpha}; both are above 0")
        if not (0 <= self.expansion <= LARGEST and 0 <= self.k <= LARGEST):
            raise BadOption(f"expansion = {self.expansion}, k = {self.k}; both lie between 0 and {LARGEST}")

    @property
    def weights(self) -> tuple[float, ...]:
        """Mixing weight of every client."""
        return mixing_weights(self.mixing, self.clients)  # type: ignore[arg-type]

    @property
    def run_name(self) -> str:
        """Default name of the run folder: data set, split and number of clients."""
        split = f"{self.split}-{self.special}" if self.split == "special-label" else self.split
        return f"{self.dataset}-{split}-{self.clients}-clients"

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "hidden": list(self.hidden), "methods": list(self.methods)}

    def to_toml(self) -> str:
        """TOML text that `from_toml` reads back."""
        return options.to_toml(self.to_dict())

    @classmethod
    def from_toml(cls, path: Path | str) -> RunConfig:
        """Read a run's configuration; raises `CorruptFile` or `BadOption` with the offending key."""
        if not Path(path).is_file():
            raise BadOption(f"no configuration '{path}'")
        try:
            content = tomllib.loads(read_text(path))
        except tomllib.TOMLDecodeError as error:
            raise CorruptFile(f"'{path}' is not valid TOML: {error}") from error
        return options.read(cls, content, f"'{path}'")

    def changed(self, **changes: Any) -> RunConfig:
        """A copy with some options replaced."""
        return dataclasses.replace(self, **changes)


def mixing_weights(first: float, clients: int) -> tuple[float, ...]:
    """Weight `first` for the first client, the rest shared equally by the others."""
    return (1.0,) if clients == 1 else (first, *([(1 - first) / (clients - 1)] * (clients - 1)))
