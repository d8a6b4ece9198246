"""The frames of a comparison, one dataclass per row: what results.json holds is declared here and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Score:
    """One figure of one network.

    Attributes:
        seed: the repetition.
        row: of the table, as in `rows`.
        method: registered name; empty for clients and ensembles.
        stage: client, ensemble, fused or refit.
        mixing: weight of the first client; the headline is the weight in `facts.mixing`.
        metric: one of the task's metrics, the first in `facts.metrics` being the headline.
        value: fractions where the metric's unit is per cent.
    """

    seed: int
    row: str
    method: str
    stage: str
    mixing: float
    metric: str
    value: float


@dataclass(frozen=True)
class Row:
    """One row of the headline table.

    Attributes:
        row: its name: the method with its options, +repair, +refit.
        kind: client, ensemble, one-shot or one-shot + refit.
        method: registered name; empty for clients and ensembles.
        basis: none, neuron, feature or pool.
        summary: one line for tables.
        seconds: matching, fusing, repairing and refitting, mean over seeds.
    """

    row: str
    kind: str
    method: str
    basis: str
    summary: str
    seconds: float


@dataclass(frozen=True)
class MethodRow:
    """A registered method, whether it ran and if not why.

    Attributes:
        method: registered name.
        basis: none, neuron, feature or pool.
        summary: one line for tables.
        available: whether it ran for every seed.
        reason: why it did not, or empty.
    """

    method: str
    basis: str
    summary: str
    available: bool
    reason: str


@dataclass(frozen=True)
class ClientRow:
    """A network that was compared.

    Attributes:
        seed: the repetition.
        client: its name.
        samples: that it was trained on, where that is known.
        label, count: a class and how many of the samples have it, where that is known.
        note: why it was left out, or empty.
    """

    seed: int
    client: str
    samples: int | None = None
    label: str | None = None
    count: int | None = None
    note: str = ""


@dataclass(frozen=True)
class SpaceRow:
    """A hidden space of the first client against the reference.

    Attributes:
        seed: the repetition.
        space: its name.
        units, units_first: of the reference and of the first client.
        symmetry: what may be done to it without changing the network.
        regime, recommended, explanation: the verdict, a registered method that follows from it, and one sentence.
        permutation, orthogonal, linear, features: share of the reference's held-out variance that the best map of each
            kind explains, the last by matched latents.
        commutation_defect: of the best rotation, where an elementwise nonlinearity follows.
        note: what could not be measured and why, or empty.
    """

    seed: int
    space: str
    units: int
    units_first: int
    symmetry: str
    regime: str | None = None
    recommended: str | None = None
    explanation: str | None = None
    permutation: float | None = None
    orthogonal: float | None = None
    linear: float | None = None
    features: float | None = None
    commutation_defect: float | None = None
    note: str = ""


@dataclass(frozen=True)
class MatchRow:
    """A match of one space in one basis, with the certificate of its plan.

    Attributes:
        seed: the repetition.
        space: its name.
        basis: neuron (the identity dictionary) or feature; both by the same procedure on the same inputs.
        pairs: matched units or latents; alive_first, alive: that ever fire in the first client and in the reference.
        mean_correlation: of matched pairs; null_mean_best: the best of each after samples were shifted.
        threshold: correlation that the null sets.
        value, lower_bound, gap: of the plan; the bound comes from feasible duals.
        energy_first, energy: share of the code energy of each that is matched.
    """

    seed: int
    space: str
    basis: str
    pairs: int
    alive_first: int
    alive: int
    mean_correlation: float
    null_mean_best: float
    threshold: float
    value: float
    lower_bound: float
    gap: float
    energy_first: float
    energy: float


@dataclass(frozen=True)
class LedgerRow:
    """What a method's maps keep and lose in one space.

    Attributes:
        seed: the repetition.
        space: its name.
        row: of the table.
        explained_variance: of the reference's post-activations by the moved client's.
        commutation_defect: `E|s(O h) - O s(h)|^2 / E|O s(h)|^2` with the space's own nonlinearity `s`, where it is
            elementwise.
        round_trip: `E|R O a - a|^2 / E|a|^2`.
    """

    seed: int
    space: str
    row: str
    explained_variance: float
    commutation_defect: float | None
    round_trip: float


@dataclass(frozen=True)
class FateRow:
    """What became of one client's features in one space of a fused network, by re-encoding (`fuse.fates`).

    Attributes:
        seed: the repetition.
        space: its name.
        row: of the table.
        client: whose features.
        kept, merged, absorbed, split, lost: how many of its latents fire again by themselves, together with their
            partner of another client, through another latent, through several, or not at all.
        recovered: mean correlation of a latent's code with its re-encoding.
        threshold: correlation from which a feature counts as present.
    """

    seed: int
    space: str
    row: str
    client: str
    kept: int
    merged: int
    absorbed: int
    split: int
    lost: int
    recovered: float
    threshold: float


@dataclass(frozen=True)
class UnitRow:
    """A measure over the units or latents of one client in one space.

    Attributes:
        seed: the repetition.
        space: its name.
        client: its name.
        measure: effective_features, or unit_selectivity and latent_selectivity, each with `_null` for shuffled labels.
        mean, low, median, high: mean and quartiles of the finite values.
        count: how many there are.
    """

    seed: int
    space: str
    client: str
    measure: str
    mean: float
    low: float
    median: float
    high: float
    count: int


@dataclass(frozen=True)
class DictionaryRow:
    """A dictionary of one space of one client.

    Attributes:
        seed: the repetition.
        client: its name.
        space: its name.
        architecture: registered name.
        units, width, k: units read, latents, and active latents per sample that were asked for.
        explained_variance, l0, dead_fraction: on held-out activations of the client's own data.
        trained_on: rows of activations behind its training, 0 where that is not known.
        capped_from: latents that were wanted before the data capped them, 0 where they were not capped.
    """

    seed: int
    client: str
    space: str
    architecture: str
    units: int
    width: int
    k: float
    explained_variance: float
    l0: float
    dead_fraction: float
    trained_on: int = 0
    capped_from: int = 0


@dataclass(frozen=True)
class FeatureRow:
    """A matched pair of latents.

    Attributes:
        seed: the repetition.
        space: its name.
        first, reference: latents of the first client and of the reference.
        score: correlation of their codes.
        gain: least-squares slope of the reference's code on the first client's.
        energy: geometric mean of what the two explain.
    """

    seed: int
    space: str
    first: int
    reference: int
    score: float
    gain: float
    energy: float


@dataclass(frozen=True)
class FitRow:
    """A layer of a refitted network.

    Attributes:
        seed: the repetition.
        row: of the table.
        layer: its name.
        before, after: share of the target's variance that the layer explains before and after the refit.
    """

    seed: int
    row: str
    layer: str
    before: float
    after: float


FRAMES: dict[str, type] = {
    "scores": Score,
    "rows": Row,
    "methods": MethodRow,
    "clients": ClientRow,
    "spaces": SpaceRow,
    "matches": MatchRow,
    "ledger": LedgerRow,
    "fates": FateRow,
    "units": UnitRow,
    "dictionaries": DictionaryRow,
    "features": FeatureRow,
    "fits": FitRow,
}
