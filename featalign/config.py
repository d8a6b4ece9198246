"""What determines a run: a frozen dataclass, written to and read from TOML."""

from __future__ import annotations

import dataclasses
import tomllib
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from featalign.errors import BadOption, CorruptFile

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
        object.__setattr__(self, "hidden", tuple(int(width) for width in self.hidden))
        object.__setattr__(self, "methods", tuple(self.methods))
        for name, low in (("clients", 1), ("seeds", 1), ("probe", 1), ("augmented", 1), ("epochs", 0), ("curve", 0)):
            if getattr(self, name) < low:
                raise BadOption(f"{name} = {getattr(self, name)}; give at least {low}")
        if self.mixing is None:
            object.__setattr__(self, "mixing", 1 / self.clients)
        if not 0 <= self.mixing <= 1:  # type: ignore[operator]
            raise BadOption(f"mixing = {self.mixing}; the weight of the first client lies between 0 and 1")
        if self.ridge <= 0 or self.expansion < 0:
            raise BadOption(f"ridge = {self.ridge}, expansion = {self.expansion}; out of range")

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
        return "".join(f"{name} = {_toml(value)}\n" for name, value in self.to_dict().items())

    @classmethod
    def from_toml(cls, path: Path | str) -> RunConfig:
        """Read a run's configuration; raises `CorruptFile` or `BadOption` with the offending key."""
        try:
            content = tomllib.loads(Path(path).read_text())
        except FileNotFoundError as error:
            raise BadOption(f"no configuration '{path}'") from error
        except tomllib.TOMLDecodeError as error:
            raise CorruptFile(f"'{path}' is not valid TOML: {error}") from error
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(content) - known):
            raise BadOption(f"'{path}' sets '{unknown[0]}', which is no option; options: {', '.join(sorted(known))}")
        return cls(**content)

    def changed(self, **options: Any) -> RunConfig:
        """A copy with some options replaced."""
        return dataclasses.replace(self, **options)


def mixing_weights(first: float, clients: int) -> tuple[float, ...]:
    """Weight `first` for the first client, the rest shared equally by the others."""
    return (1.0,) if clients == 1 else (first, *([(1 - first) / (clients - 1)] * (clients - 1)))


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, list):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return repr(value)
