"""The frames of a match, one dataclass per row: what results.json holds is declared here and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PairRow:
    """Two latents that are one feature, or one and a part of it.

    Attributes:
        site: where activations were read.
        client_a, client_b: names of the clients; latent_a, latent_b: indices of their latents.
        score: correlation of the two codes (without inputs: what the geometry compares).
        rival: best other score of either latent, those of its own split or merge left out.
        null: score that the pair had to beat for chance: the larger of its latents' levels after shuffling samples.
        gain: least-squares slope of b's code on a's.
        energy: share of the energy, mean of the shares of the two latents in their clients' codes.
        overlap: rows on which both are active, over rows on which either is (Jaccard index).
        kind: matched (one to one), split (one of a, several of b), merged (several of a, one of b).
        together: of splits and merges, correlation of the one latent with the combination of the several.
    """

    site: str
    client_a: str
    client_b: str
    latent_a: int
    latent_b: int
    score: float
    rival: float
    null: float
    gain: float
    energy: float
    overlap: float
    kind: str
    together: float | None = None


@dataclass(frozen=True)
class FeatureRow:
    """A latent of one client.

    Attributes:
        site: where activations were read.
        client: its name; latent: index.
        density: share of the rows on which it is active.
        mean, max: of its code where it is active.
        energy: share of the client's code energy (variance of the code times the squared norm of the atom).
        kind: matched, split (several latents of the partner make it), merged (it is one of several that make one of
            the partner's), own (in no pair), dead (active on too few rows to say).
        partner_client, partner: best latent in a pair with it; empty for own and dead ones.
        score: of that pair; of others the largest score with any latent of any other client.
        relative_norm: its share of the decoder norms of the crosscoder's latent nearest to it: 1 only in this client,
            1 over the number of clients where all have it alike. Empty without that witness.
        latent_scaling: largest strength of that latent in another client, over that in this one, with the sparsity
            penalty's shrinkage undone: 0 only in this client, 1 alike (Minder et al. 2025).
    """

    site: str
    client: str
    latent: int
    density: float
    mean: float
    max: float
    energy: float
    kind: str
    partner_client: str | None = None
    partner: int | None = None
    score: float | None = None
    relative_norm: float | None = None
    latent_scaling: float | None = None


@dataclass(frozen=True)
class SummaryRow:
    """How two clients agree at a site, or what the same measures give where nothing is shared.

    Attributes:
        site: where activations were read.
        client_a, client_b: names of the clients.
        control: none; shuffled (the samples of b, or without inputs its directions, in random order); untrained
            (random dictionaries of the same size and sparsity on the same activations).
        mcc: mean score of the best one-to-one matching of alive latents, over the smaller dictionary.
        pw_mcc: the same of decoder cosines, where both clients have one width.
        mmcs, mmcs_back: mean over latents of the best score, a to b and b to a.
        shared: share of the smaller dictionary matched at a score of at least 0.7.
        matched, splits, merges: pairs that are one to one; latents of a that are split; latents of b that are merged.
        own_a, own_b, dead_a, dead_b, alive_a, alive_b: latents.
        coverage_a, coverage_b: share of the code energy in latents that are in a pair.
        rows: of activations seen.
        value, lower_bound, gap: certificate of the plan behind the pairs: its cost, what no plan can beat, difference.
    """

    site: str
    client_a: str
    client_b: str
    control: str
    mcc: float | None = None
    pw_mcc: float | None = None
    mmcs: float | None = None
    mmcs_back: float | None = None
    shared: float | None = None
    matched: int | None = None
    splits: int | None = None
    merges: int | None = None
    own_a: int | None = None
    own_b: int | None = None
    dead_a: int | None = None
    dead_b: int | None = None
    alive_a: int | None = None
    alive_b: int | None = None
    coverage_a: float | None = None
    coverage_b: float | None = None
    rows: int | None = None
    value: float | None = None
    lower_bound: float | None = None
    gap: float | None = None


@dataclass(frozen=True)
class QualityRow:
    """A dictionary that sentences rest on.

    Attributes:
        site: where activations were read.
        client: its name.
        architecture: what the dictionary is; latents, units: its size and the layer's.
        explained_variance: share of the activations' variance that it reconstructs.
        l0: mean number of active latents per row.
        dead_fraction: share of the latents never active in `rows` rows.
        loss_recovered: between the layer's mean (0) and the network as it is (1); empty where nothing is scored.
        rows: of activations that all this was measured on; rows_per_latent: the same over the latents.
        trained_rows: rows that the dictionary was trained on here; empty where it was given.
        measured_on: held-out, or given inputs (whether the dictionary was trained on them is not known).
    """

    site: str
    client: str
    architecture: str
    latents: int
    units: int
    explained_variance: float | None = None
    l0: float | None = None
    dead_fraction: float | None = None
    loss_recovered: float | None = None
    rows: int = 0
    rows_per_latent: float = 0.0
    trained_rows: int | None = None
    measured_on: str = "given inputs"


@dataclass(frozen=True)
class UniverseRow:
    """A latent's place among the features of three or more clients.

    Attributes:
        site: where activations were read.
        feature: index of the common feature; members: clients that have it.
        client, latent: the latent that is this feature in one client.
    """

    site: str
    feature: int
    members: int
    client: str
    latent: int


@dataclass(frozen=True)
class CycleRow:
    """Whether pairwise matches agree around three or more clients.

    Attributes:
        site: where activations were read.
        clients: in order around the cycle.
        matching: pairs (each two clients matched alone) or universe (all at once, consistent by construction).
        consistency: share of the latents matched all the way round that come back to themselves; null: the last match
            shuffled.
        coverage: share of the first client's latents that are matched all the way round.
    """

    site: str
    clients: str
    matching: str
    consistency: float
    null: float
    coverage: float


FRAMES: dict[str, type] = {
    "pairs": PairRow,
    "features": FeatureRow,
    "summary": SummaryRow,
    "quality": QualityRow,
    "universe": UniverseRow,
    "cycles": CycleRow,
}
