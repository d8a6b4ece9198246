"""The frames of a diagnosis, one dataclass per row: what results.json holds is declared here and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LayerRow:
    """One hidden space with its two verdicts.

    Attributes:
        layer: its name.
        units: its size; varying: units that are not constant; ranked: those that also fire often enough.
        superposed, changed: yes, no or unknown.
        superposition, training: the verdicts in words, with the quality of the dictionaries they rest on.
        meaning: what units carry, in words; classes: whether latents are about classes, in words.
        budget: rows seen, rows per latent, and whether the data capped the latents, in words.
        note: why it could not be diagnosed, or empty.
    """

    layer: str
    units: int
    varying: int = 0
    ranked: int = 0
    superposed: str = "unknown"
    changed: str = "unknown"
    superposition: str = ""
    training: str = ""
    meaning: str = ""
    classes: str = ""
    budget: str = ""
    note: str = ""


@dataclass(frozen=True)
class DictionaryRow:
    """A dictionary of one layer, or of one of its controls.

    Attributes:
        layer: its name.
        network: model, shuffled weights, shuffled samples, random directions, or a partner's name.
        seed: of its training.
        architecture: registered name; width, k: latents, and active ones per sample that were asked for.
        explained_variance, l0: on `rows` samples; dead_fraction: of the latents, in all `seen` samples.
        measured_on: held-out, or training where none was held out.
        gain: least-squares slope of the reconstruction, below 1 where it is too small.
        redundant: share of the atoms with another at a cosine above .9.
        given: whether it was given, not trained here: what it was trained on is not known.
    """

    layer: str
    network: str
    seed: int
    architecture: str
    width: int
    k: float
    explained_variance: float
    l0: float
    dead_fraction: float
    rows: int
    seen: int
    gain: float
    redundant: float
    measured_on: str
    given: bool = False


@dataclass(frozen=True)
class MeasureRow:
    """A measure of one layer with its null.

    Attributes:
        layer: its name.
        measure: its name, as the page explains it.
        value: the statistic; null: what it gives where there is nothing to find.
        low, high: 95 % bootstrap interval over `count` items (latents, units, samples, classes).
        coverage: share of the items that the value speaks for.
        evidence: whether the interval excludes the null.
    """

    layer: str
    measure: str
    value: float
    null: float
    low: float
    high: float
    coverage: float
    count: int
    evidence: bool


@dataclass(frozen=True)
class FunctionRow:
    """What the network keeps when a layer is replaced by its dictionary's reconstruction.

    Attributes:
        layer: its name.
        metric: one of the task's, loss (its mean), recovered (loss recovered between the mean and the network) or kl
            (mean divergence of the class distribution).
        network, spliced, ablated: as it is, with the reconstruction, with the layer's mean.
    """

    layer: str
    metric: str
    network: float
    spliced: float
    ablated: float


@dataclass(frozen=True)
class SweepRow:
    """A dictionary of the sweep along width and sparsity.

    Attributes:
        layer: its name.
        network: model or shuffled weights.
        width, k, seed: of the dictionary.
        explained_variance, l0, dead_fraction: its quality on a tenth of the training rows that it was not trained on.
        psi: effective features per unit of the layer.
    """

    layer: str
    network: str
    width: int
    k: float
    seed: int
    explained_variance: float
    l0: float
    dead_fraction: float
    psi: float


@dataclass(frozen=True)
class UnitRow:
    """A unit of one layer.

    Attributes:
        layer: its name; unit: its index.
        firing_rate: share of the samples on which it is not at its resting value; ranked: whether that is often enough.
        effective: features that it carries, `exp(H)` of variance shares; empty where it is constant.
        control: the same of the unit of this index where weights are shuffled; random: with random directions.
        kinds: kinds of inputs that drive it, `exp(H)` of the significant directions of the inputs that do.
        columns: inputs that it reads, `exp(H)` of their shares, where inputs are columns of a table.
        selectivity: class selectivity, where the task has classes.
    """

    layer: str
    unit: int
    firing_rate: float
    ranked: bool
    effective: float | None = None
    control: float | None = None
    random: float | None = None
    kinds: float | None = None
    columns: float | None = None
    selectivity: float | None = None


@dataclass(frozen=True)
class FeatureRow:
    """A latent of the dictionary that is shown.

    Attributes:
        layer: its name; latent: its index.
        firing_rate: share of the samples on which it is active; ranked: whether that is often enough.
        energy: share of the code's energy.
        again: cosine with the matched latent of the second seed.
        selectivity: class selectivity, where the task has classes.
    """

    layer: str
    latent: int
    firing_rate: float
    ranked: bool
    energy: float
    again: float | None = None
    selectivity: float | None = None


FRAMES: dict[str, type] = {
    "layers": LayerRow,
    "dictionaries": DictionaryRow,
    "measures": MeasureRow,
    "function": FunctionRow,
    "sweep": SweepRow,
    "units": UnitRow,
    "features": FeatureRow,
}
