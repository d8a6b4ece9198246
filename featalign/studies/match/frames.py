"""A correspondence of latents as rows of the result's frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from featalign.align.correspondence import DEAD, MATCHED, MERGED, OWN, SPLIT, Correspondence
from featalign.dictionaries import Basis
from featalign.measure.agreement import Agreement
from featalign.studies.match.rows import PairRow, SummaryRow
from featalign.transport.codes import Codes


def energy_shares(basis: Basis, codes: Codes) -> np.ndarray:
    """Share of the client's code energy in each latent, `[F]`."""
    norms = basis.atoms.detach().double().pow(2).sum(1).cpu().numpy()
    found = codes.variance * norms
    return found / max(found.sum(), 1e-300)


def pair_rows(
    place: tuple[str, str, str],
    found: Correspondence,
    codes: tuple[Codes, Codes] | None,
    energy: tuple[np.ndarray, np.ndarray] | None,
) -> list[PairRow]:
    """The pairs of two clients at a site, matched ones first; without codes what rests on them stays empty."""
    near, back = found.near, found.near.T.tocsr()
    families = _families(found)
    rows = []
    for link in found.links:
        members = families[link.kind, link.a if link.kind == SPLIT else link.b]
        score = _entry(near, link.a, link.b)
        rivals = (_rival(near, link.a, {b for _, b in members}), _rival(back, link.b, {a for a, _ in members}))
        null = max(found.levels[0][link.a], found.levels[1][link.b])
        gain = overlap = share = float("nan")
        if codes is not None and energy is not None:
            gain = score * float(np.sqrt(codes[1].variance[link.b] / codes[0].variance[link.a]))
            overlap = jaccard(codes[0], link.a, codes[1], link.b)
            share = float(energy[0][link.a] + energy[1][link.b]) / 2
        together = None if link.kind == MATCHED else link.together
        rows.append(
            PairRow(*place, link.a, link.b, score, max(rivals), float(null), gain, share, overlap, link.kind, together)
        )
    return sorted(rows, key=lambda row: row.kind != MATCHED)


def _families(found: Correspondence) -> dict[tuple[str, int], list[tuple[int, int]]]:
    """The pairs of every split and merge, and of every match its own."""
    families: dict[tuple[str, int], list[tuple[int, int]]] = {}
    for link in found.links:
        families.setdefault((link.kind, link.a if link.kind == SPLIT else link.b), []).append((link.a, link.b))
    return families


def _entry(matrix: Any, row: int, column: int) -> float:
    part = slice(matrix.indptr[row], matrix.indptr[row + 1])
    return float(matrix.data[part][matrix.indices[part] == column].sum())


def _rival(matrix: Any, row: int, own: set[int]) -> float:
    """Best similarity of a row beside its own partners."""
    part = slice(matrix.indptr[row], matrix.indptr[row + 1])
    others = ~np.isin(matrix.indices[part], list(own))
    return float(matrix.data[part][others].max(initial=0.0))


def jaccard(a: Codes, i: int, b: Codes, j: int) -> float:
    """Samples on which both latents are active, over samples on which either is."""
    left, right = (
        codes.latents.indices[codes.latents.indptr[latent] : codes.latents.indptr[latent + 1]]
        for codes, latent in ((a, i), (b, j))
    )
    both = len(np.intersect1d(left, right, assume_unique=True))
    return both / max(1, len(left) + len(right) - both)


def feature_frame(
    site: str,
    name: str,
    found: Mapping[str, tuple[int, Correspondence]],
    codes: Codes | None,
    energy: np.ndarray | None,
    pairs: pd.DataFrame,
    witness: tuple[np.ndarray, np.ndarray] | None = None,
) -> pd.DataFrame:
    """A row for every latent of a client; `found` are its correspondences by the other client, with its side in each.

    With several partners the best pair decides, and own means in no pair with anybody.
    """
    kinds = np.stack([each.kinds(side) for side, each in found.values()])
    width = kinds.shape[1]
    best = np.nan_to_num(np.stack([each.best[side] for side, each in found.values()]), nan=0.0).max(axis=0)
    frame = pd.DataFrame({
        "site": site, "client": name, "latent": np.arange(width),
        "density": np.nan if codes is None else codes.firings / codes.samples,
        "mean": np.nan if codes is None else codes.mean * codes.samples / np.maximum(codes.firings, 1),
        "max": np.nan if codes is None else codes.largest,
        "energy": np.nan if energy is None else energy,
        "kind": np.where((kinds == DEAD).all(axis=0), DEAD, OWN), "partner_client": None, "partner": None,
        "score": best,
    })  # fmt: skip
    frame.loc[frame["kind"] == DEAD, "score"] = None
    partners = _partners(site, name, pairs)
    frame = frame.astype({"partner_client": object, "partner": object})
    at = partners["latent"].to_numpy(dtype=int)
    for column in ("kind", "partner_client", "partner", "score"):
        frame.loc[at, column] = partners[column].to_numpy()
    if witness is not None:
        frame["relative_norm"], frame["latent_scaling"] = witness
    return frame


def _partners(site: str, name: str, pairs: pd.DataFrame) -> pd.DataFrame:
    """The best pair of every latent of a client that is in one."""
    here = pairs[pairs["site"] == site]
    turned = {SPLIT: MERGED, MERGED: SPLIT}
    left, right = here[here["client_a"] == name], here[here["client_b"] == name]
    columns = ["latent", "partner_client", "partner", "score", "kind"]
    sides = [
        left[["latent_a", "client_b", "latent_b", "score", "kind"]].set_axis(columns, axis=1),
        right[["latent_b", "client_a", "latent_a", "score", "kind"]].set_axis(columns, axis=1),
    ]
    sides[1]["kind"] = sides[1]["kind"].replace(turned)
    both = pd.concat([side for side in sides if len(side)] or sides[:1])
    return both.sort_values("score", ascending=False, kind="stable").drop_duplicates("latent")


def summary_rows(
    place: tuple[str, str, str],
    found: Correspondence,
    controls: Mapping[str, Agreement],
    directions: Mapping[str, float],
    energy: tuple[np.ndarray, np.ndarray] | None,
    rows: int,
) -> list[SummaryRow]:
    """How two clients agree, and the controls; `directions` are PW-MCC by control."""
    kinds = found.kinds(0), found.kinds(1)
    inside = [np.isin(side, (MATCHED, SPLIT, MERGED)) for side in kinds]
    coverage = [float(e[i].sum()) for e, i in zip(energy, inside)] if energy is not None else [None, None]
    own = SummaryRow(
        *place, "none", **_measures(found.agreement, directions.get("none")),
        matched=sum(link.kind == MATCHED for link in found.links),
        splits=len({link.a for link in found.links if link.kind == SPLIT}),
        merges=len({link.b for link in found.links if link.kind == MERGED}),
        own_a=int((kinds[0] == OWN).sum()), own_b=int((kinds[1] == OWN).sum()),
        dead_a=int((kinds[0] == DEAD).sum()), dead_b=int((kinds[1] == DEAD).sum()),
        alive_a=int((kinds[0] != DEAD).sum()), alive_b=int((kinds[1] != DEAD).sum()),
        coverage_a=coverage[0], coverage_b=coverage[1], rows=rows,
        value=found.plan.value, lower_bound=found.plan.lower_bound, gap=found.plan.gap,
    )  # fmt: skip
    others = [
        SummaryRow(*place, control, **_measures(agreement, directions.get(control)))
        for control, agreement in controls.items()
    ]
    return [own, *others]


def _measures(agreement: Agreement, directions: float | None) -> dict[str, Any]:
    return {**agreement.to_dict(), "pw_mcc": directions}


def best_maps(found: Sequence[Sequence[Correspondence | None]], order: Sequence[int]) -> list[np.ndarray]:
    """Around a cycle of clients, the one-to-one partner of every latent in the next client, -1 for none."""
    maps = []
    for here, there in zip(order, [*order[1:], order[0]]):
        match, side = (found[here][there], 0) if found[here][there] is not None else (found[there][here], 1)
        assert match is not None
        to = np.full(len(match.alive[side]), -1)
        for link in match.links:
            if link.kind == MATCHED:
                to[link.a if side == 0 else link.b] = link.b if side == 0 else link.a
        maps.append(to)
    return maps
