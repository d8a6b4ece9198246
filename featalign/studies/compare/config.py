"""What determines a comparison: frozen dataclasses, checked strictly, written to and read from TOML."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from featalign import options as typed
from featalign import storage
from featalign.errors import BadOption
from featalign.studies.result import config_dict

Options = Mapping[str, Any]


@dataclass(frozen=True)
class CompareConfig:
    """How networks are compared, whoever trained them.

    Attributes:
        methods: registered names; empty means those that the networks allow and that are on by default.
        options: by method, options that differ from their defaults, such as `{"ot-acts": {"cost": "correlation"}}`.
        mixing: weight of the first client in the headline, the others sharing the rest; none means equal weights.
        curve: points of the mixing-weight curve; 0 leaves the curves out.
        augment: recipe that extends the probe for the refit and the feature matching: shift-mix, gaussian, blend of
            the two, splice (tokens), or none.
        augmented: number of inputs after augmentation.
        head: target of the readout in the refit: one of the task's, none for the rule's, empty for what suits the
            clients (`fuse.solve`).
        ridge: of the refit, relative to each Gram matrix.
        head_ridge: of the refitted readout; none means what suits the task.
        steps: of gradient descent on the ensemble's outputs, after the refit.
        architecture: of the dictionaries, a registered name.
        expansion: dictionary width as a multiple of the units; 0 means the default for the size.
        k: active latents per sample; 0 means the default for the width.
        evidence: measure every space as well: matches in both bases, regime, ledger, polysemanticity, feature browser.
        device: where networks run, such as cuda; none leaves them where they are.
    """

    methods: tuple[str, ...] = ()
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    mixing: float | None = None
    curve: int = 11
    augment: str = "none"
    augmented: int = 10_000
    head: str = ""
    ridge: float = 1e-2
    head_ridge: float | None = None
    steps: int = 0
    architecture: str = "topk"
    expansion: float = 0.0
    k: float = 0.0
    evidence: bool = True
    device: str | None = None

    def __post_init__(self) -> None:
        typed.check(self)
        for name, low in (("augmented", 1), ("curve", 0), ("steps", 0), ("expansion", 0), ("k", 0)):
            if getattr(self, name) < low:
                raise BadOption(f"{name} = {getattr(self, name)}; give at least {low}")
        if self.mixing is not None and not 0 <= self.mixing <= 1:
            raise BadOption(f"mixing = {self.mixing}; the weight of the first client lies between 0 and 1")
        for name in ("ridge", "head_ridge"):
            if (value := getattr(self, name)) is not None and value <= 0:
                raise BadOption(f"{name} = {value}; give a number above 0")
        for name, high in (("augmented", 10_000_000), ("curve", 1001), ("expansion", 1000), ("k", 10_000)):
            if getattr(self, name) > high:
                raise BadOption(f"{name} = {getattr(self, name)}; give at most {high}")
        if doubled := [name for name in self.methods if self.methods.count(name) > 1]:
            raise BadOption(f"method '{doubled[0]}' is named twice")
        for method, values in self.options.items():
            if not isinstance(values, Mapping):
                raise BadOption(f"options = {{'{method}': {values!r}}}; give a table of options for each method")
            if self.methods and method not in self.methods:
                raise BadOption(f"options for method '{method}', which is not among methods: {', '.join(self.methods)}")
        object.__setattr__(self, "options", storage.plain(self.options))

    def to_toml(self) -> str:
        """TOML text that `from_toml` reads back."""
        return typed.to_toml(config_dict(self))

    @classmethod
    def from_toml(cls, path: Path | str) -> Self:
        """Read a configuration; raises `CorruptFile`, or `BadOption` with the offending key."""
        if not Path(path).is_file():
            raise BadOption(f"no configuration '{path}'")
        return typed.read(cls, storage.read_toml(path), f"'{path}'")

    def changed(self, **values: Any) -> Self:
        """A copy with some options replaced."""
        return dataclasses.replace(self, **values)


@dataclass(frozen=True)
class RunConfig(CompareConfig):
    """Everything that decides the numbers of `featalign compare`: clients are trained on a shipped data set.

    Attributes:
        dataset: name of a data set (`featalign data list`).
        folder: folder with the user's copy of it, or empty.
        task: registered name; none means the data set's.
        split: partition scheme: special-label, iid, dirichlet, client-dirichlet, shards, quantity.
        special: the label that only client A holds (special-label).
        alpha: concentration (Dirichlet splits).
        clients: number of clients.
        seeds: number of repetitions; repetition s uses seed s for partition, initialisation, training and probe.
        model: registered family of the clients.
        model_options: of the family, such as `{"hidden": [128, 64]}`.
        epochs: of client training; 0 means the family's recipe.
        probe: unlabelled training inputs shared by all clients.
        class_counts: let the mixture weigh clients by their label counts per class.
    """

    augment: str = "blend"
    dataset: str = "digits"
    folder: str = ""
    task: str | None = None
    split: str = "special-label"
    special: int = 4
    alpha: float = 0.5
    clients: int = 2
    seeds: int = 3
    model: str = "mlp"
    model_options: Mapping[str, Any] = field(default_factory=dict)
    epochs: int = 0
    probe: int = 400
    class_counts: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, low in (("clients", 1), ("seeds", 1), ("probe", 1), ("epochs", 0)):
            if getattr(self, name) < low:
                raise BadOption(f"{name} = {getattr(self, name)}; give at least {low}")
        if self.alpha <= 0:
            raise BadOption(f"alpha = {self.alpha}; give a number above 0")
        object.__setattr__(self, "model_options", storage.plain(self.model_options))

    @property
    def run_name(self) -> str:
        """Default name of the run folder: data set, family where it is not the MLP, split and number of clients."""
        split = f"{self.split}-{self.special}" if self.split == "special-label" else self.split
        model = "" if self.model == "mlp" else f"-{self.model}"
        return f"{self.dataset}{model}-{split}-{self.clients}-clients"

    @property
    def scheme_options(self) -> dict[str, Any]:
        """Options of the partition scheme, those of ours that it takes."""
        import inspect

        from featalign.data.partition import schemes

        taken = inspect.signature(schemes[self.split]).parameters
        return {name: getattr(self, name) for name in ("special", "alpha") if name in taken}


def method_options(texts: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Options by method from words of a command line, `zip.units=features`, converted by the method's signature.

    Raises `BadOption` for words of another form, unknown options and values of another type.
    """
    from featalign.fuse import METHODS

    found: dict[str, dict[str, Any]] = {}
    for text in texts:
        name, dot, rest = text.partition(".")
        option, equals, value = rest.partition("=")
        if not (dot and equals and option):
            raise BadOption(f"option {text!r}; write METHOD.OPTION=VALUE, such as ot-acts.cost=correlation")
        found.setdefault(name, {})[option.strip()] = value
    return {
        name: typed.bind_options(METHODS[name].function, values, f"method '{name}'", text=True)
        for name, values in found.items()
    }


def model_options(model: str, values: Options, text: bool = False) -> dict[str, Any]:
    """Options of a registered family, checked against its fields; raises `BadOption`.

    `text`: values are words of a command line.
    """
    import typing

    from featalign.clients import models

    kind: Any = models[model]
    known = {item.name: item for item in dataclasses.fields(kind)}
    hints = typing.get_type_hints(kind)
    for name in values:
        if name not in known:
            raise BadOption(f"model '{model}' has no option '{name}'; options: {', '.join(known)}")
    return {
        name: typed.convert(value, hints[name], name, f"model '{model}'", text=text and isinstance(value, str))
        for name, value in values.items()
    }


def model_texts(model: str, texts: Iterable[str]) -> dict[str, Any]:
    """Options of a family from words of a command line, `hidden=128,64`."""
    pairs = [text.partition("=") for text in texts]
    if wrong := next((text for text, (name, equals, _) in zip(texts, pairs) if not (name and equals)), None):
        raise BadOption(f"model option {wrong!r}; write OPTION=VALUE, such as hidden=128,64")
    return model_options(model, {name.strip(): value for name, _, value in pairs}, text=True)
