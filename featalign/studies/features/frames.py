"""The two frames that a browser is made from, and how a match of two dictionaries fills them.

`pairs`: which feature of one client goes with which of another. `features`: every feature of every client, with what
became of it. Studies that match in their own way build the same frames.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from featalign.align.feature import FeatureMatch
from featalign.studies.features.cards import FeatureCards

PAIR_KINDS = ("matched", "split", "merged")
KINDS = (*PAIR_KINDS, "own", "dead")


@dataclass(frozen=True)
class PairRow:
    """Two features that go together.

    Attributes:
        site: where; client_a, client_b: the clients; latent_a, latent_b: their features.
        score: how well they go together, as the study says; rival: the best score of another partner.
        null: what chance reaches; gain: from a's scale to b's; energy: shared by both.
        overlap: rows on which both fire, over those on which any does.
        kind: matched, split (a's feature has several partners) or merged (b's has).
    """

    site: str
    client_a: str
    client_b: str
    latent_a: int
    latent_b: int
    score: float
    rival: float | None = None
    null: float | None = None
    gain: float | None = None
    energy: float | None = None
    overlap: float | None = None
    kind: str = "matched"


@dataclass(frozen=True)
class LatentRow:
    """A feature of one client.

    Attributes:
        site, client, latent: which.
        density: share of the rows on which it fires; mean: of its activation there; max: of its activation.
        energy: mean square of what it writes.
        kind: matched, split, merged, own (no partner) or dead (it never fires).
        partner_client, partner: its best partner; empty and -1 where there is none.
        score: with the best partner, or the best there would be.
        note: words about it for the card.
    """

    site: str
    client: str
    latent: int
    density: float
    mean: float
    max: float
    energy: float
    kind: str = "own"
    partner_client: str = ""
    partner: int = -1
    score: float | None = None
    note: str = ""


def match_frames(
    match: FeatureMatch, site: str, names: Sequence[str], cards: Sequence[FeatureCards]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`(pairs, features)` of a one-to-one match of two clients."""
    pairs, correlation = match.pairs, match.correlation
    shared = np.sqrt(match.energy[0][pairs[:, 0]] * match.energy[1][pairs[:, 1]])
    found = []
    for k, (i, j) in enumerate(pairs.tolist()):
        rivals = np.delete(correlation[i], j)
        rival = float(rivals.max()) if len(rivals) else None
        numbers = (float(match.scores[k]), rival, 1 - match.threshold, float(match.gains[k]), float(shared[k]))
        found.append(PairRow(site, names[0], names[1], i, j, *numbers))
    features = []
    for side in (0, 1):
        partner = dict(zip(pairs[:, side].tolist(), pairs[:, 1 - side].tolist()))
        best = correlation.max(axis=1 - side)
        features.append(latent_frame(cards[side], site, names[side], partner, names[1 - side], best))
    return pair_frame(found), pd.concat(features, ignore_index=True)


def pair_kinds(first: Sequence[int], second: Sequence[int]) -> list[str]:
    """The kind of each pair: split where the first has several partners, else merged where the second has."""
    several = [{k for k, n in Counter(side).items() if n > 1} for side in (first, second)]
    return ["split" if a in several[0] else "merged" if b in several[1] else "matched" for a, b in zip(first, second)]


def pair_frame(rows: Sequence[PairRow]) -> pd.DataFrame:
    """Rows as a frame, with its columns also where there is none."""
    return pd.DataFrame([vars(row) for row in rows], columns=list(PairRow.__dataclass_fields__))


def latent_frame(
    cards: FeatureCards,
    site: str,
    client: str,
    partners: dict[int, int] | None = None,
    other: str = "",
    score: np.ndarray | None = None,
    notes: dict[int, str] | None = None,
) -> pd.DataFrame:
    """Every latent of a client, matched with its partner where it has one."""
    partners, notes = partners or {}, notes or {}
    count = len(cards.counts)
    matched = np.isin(np.arange(count), list(partners))
    kind = np.where(matched, "matched", np.where(cards.counts.numpy() > 0, "own", "dead"))
    return pd.DataFrame({
        "site": site, "client": client, "latent": range(count), "density": cards.density.numpy(),
        "mean": cards.mean.numpy(), "max": cards.max.numpy(), "energy": cards.energy.numpy(), "kind": kind,
        "partner_client": np.where(matched, other, ""), "partner": [partners.get(j, -1) for j in range(count)],
        "score": np.full(count, np.nan) if score is None else score,
        "note": [notes.get(j, "") for j in range(count)],
    })  # fmt: skip
