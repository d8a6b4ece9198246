"""Three or more clients at once: common features, and whether pairwise matches agree around a cycle."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from featalign.align.correspondence import Correspondence, Rule
from featalign.measure import cycle_consistency
from featalign.studies.match.frames import best_maps
from featalign.studies.match.rows import CycleRow, UniverseRow
from featalign.transport import universe

LARGEST = 1500  # latents of one client up to which all are matched at once: every assignment is dense
CYCLES = 20  # cycles of three that are reported


def universe_rows(
    label: str, names: Sequence[str], found: dict[tuple[int, int], Correspondence], rule: Rule
) -> tuple[list[UniverseRow], str]:
    """A row for every alive latent with the common feature it is; and a note where there are too many latents."""
    alive: dict[int, np.ndarray] = {}
    for (a, b), each in found.items():
        for client, side in ((a, 0), (b, 1)):
            alive[client] = alive.get(client, each.alive[side]) & each.alive[side]
    index = [np.flatnonzero(alive[client]) for client in range(len(names))]
    most = max(len(side) for side in index)
    if most > LARGEST:
        return [], f"'{label}': {most} alive latents; features common to all clients are sought up to {LARGEST}"
    price, costs = 1 - rule.minimum, {}
    for (a, b), each in found.items():
        cost = 1 - each.near[index[a]][:, index[b]].toarray()
        level = np.maximum(each.levels[0][index[a]][:, None], each.levels[1][index[b]][None, :])
        costs[a, b] = np.where(1 - cost > level, cost, 1.0)
    common = universe(costs, threshold=price)
    members, rows = common.members, []
    for client, (name, part) in enumerate(zip(names, common.maps)):
        for place, feature in enumerate(part.indices):
            rows.append(UniverseRow(label, int(feature), int(members[feature]), name, int(index[client][place])))
    return sorted(rows, key=lambda row: (-row.members, row.feature)), ""


def cycle_rows(
    label: str,
    names: Sequence[str],
    found: dict[tuple[int, int], Correspondence],
    common: Sequence[UniverseRow],
    seed: int,
) -> list[CycleRow]:
    """Consistency around every three clients, of pairwise matches and of the universe."""
    table: list[list[Correspondence | None]] = [[None] * len(names) for _ in names]
    for (a, b), each in found.items():
        table[a][b] = each
    widths = [len(table[0][1].alive[0]), *(len(table[0][k].alive[1]) for k in range(1, len(names)))]  # type: ignore
    features = {(row.client, row.latent): row.feature for row in common}
    rows = []
    for order in list(combinations(range(len(names)), 3))[:CYCLES]:
        shown = " > ".join(names[k] for k in (*order, order[0]))
        matchings = {"pairs": best_maps(table, order)}
        if common:
            matchings["universe"] = _universe_maps(names, widths, features, order)
        for matching, maps in matchings.items():
            score = cycle_consistency(maps, seed)
            rows.append(CycleRow(label, shown, matching, score.value, score.null, score.coverage))
    return rows


def _universe_maps(
    names: Sequence[str], widths: Sequence[int], features: dict[tuple[str, int], int], order: Sequence[int]
) -> list[np.ndarray]:
    where = {(name, feature): latent for (name, latent), feature in features.items()}
    maps = []
    for here, there in zip(order, [*order[1:], order[0]]):
        to = np.full(widths[here], -1)
        for latent in range(widths[here]):
            feature = features.get((names[here], latent))
            to[latent] = -1 if feature is None else where.get((names[there], feature), -1)
        maps.append(to)
    return maps
