"""Which latents of two clients are one feature: matched one to one, split, merged, or one client's own.

Two latents may be matched where the correlation of their codes beats what either finds by chance, and an effect size.
Among those the one-to-one matching that keeps most correlation is found by partial transport, with its certificate.
What it leaves over is either a part of a latent that several of the other client's make up, or the client's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy.optimize
import scipy.sparse

from featalign.errors import BadOption, ProbeError
from featalign.measure.agreement import Agreement
from featalign.transport import Plan, solve
from featalign.transport.candidates import Candidates
from featalign.transport.codes import Codes, ListedCost, nearest

MATCHED, SPLIT, MERGED, OWN, DEAD = "matched", "split", "merged", "own", "dead"
DRAWS = 2000  # best matches by chance that a null rests on: small dictionaries are shuffled several times
SHUFFLES = 8  # at most
BIN = 500  # best matches by chance per level of the null
DENSE = 2**22  # entries up to which a matching is solved on the whole matrix
PARTS = 8  # latents of one client that may together make one of the other
Sides = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Rule:
    """What counts as a pair.

    Attributes:
        minimum: correlation below which two latents are no pair, whatever the null says (effect size).
        quantile: share of the best matches by chance that a pair must beat.
        firings: samples on which a latent must be active, or it counts as dead.
        split_gain: share of a latent's variance that each further latent must explain to make it a split.
    """

    minimum: float = 0.3
    quantile: float = 0.99
    firings: int = 10
    split_gain: float = 0.05

    def __post_init__(self) -> None:
        for name in ("minimum", "quantile", "split_gain"):
            if not 0 <= getattr(self, name) <= 1:
                raise BadOption(f"{name} = {getattr(self, name)}; give a number from 0 to 1")
        if self.minimum == 1 or self.split_gain == 0 or self.firings < 1:
            raise BadOption("give minimum below 1, split_gain above 0 and firings of at least 1")


@dataclass(frozen=True)
class Link:
    """A pair of latents and what it is: matched, split (one of A, several of B) or merged (several of A, one of B).

    `together` is the correlation of the one latent with the best non-negative combination of the several, NaN for
    matched pairs.
    """

    a: int
    b: int
    kind: str = MATCHED
    together: float = float("nan")


@dataclass(frozen=True, eq=False)
class Correspondence:
    """The latents of two clients, `[F_a]` and `[F_b]`, put in correspondence.

    Attributes:
        links: pairs, those of a split or a merge one after another.
        plan: the one-to-one matching behind them, with its certificate, on the pairs that the null allows.
        near: similarities `[F_a, F_b]` of the nearest pairs, whether matched or not.
        levels: similarity that a pair must beat for chance, by latent, of A and of B.
        alive: latents that are active often enough, of A and of B.
        best: largest similarity of every latent, of A and of B; chance: the same after the samples of B were shuffled.
        agreement, by_chance: of the alive latents; by_chance after the samples of B were shuffled.
    """

    links: list[Link]
    plan: Plan
    near: scipy.sparse.csr_array
    levels: Sides
    alive: Sides
    best: Sides
    chance: Sides
    agreement: Agreement
    by_chance: Agreement

    def kinds(self, side: int) -> np.ndarray:
        """Kind of every latent of a client: of A (0) or of B (1)."""
        found = np.where(self.alive[side], OWN, DEAD).astype(object)
        for link in self.links:
            kind = link.kind
            if side == 1 and kind != MATCHED:  # what is split for A is, for B, several that make one
                kind = MERGED if kind == SPLIT else SPLIT
            found[link.a if side == 0 else link.b] = kind
        return found


def correspond(a: Codes, b: Codes, rule: Rule | None = None, seed: int = 0) -> Correspondence:
    """Put the latents of two clients in correspondence by their codes of the same samples.

    A pair must beat the `rule.minimum` and, for both of its latents, the `rule.quantile` of the best matches found
    after the samples of B were shuffled, among latents that are active about as often. Latents over are parts of a
    split where a non-negative combination of them and of the matched one explains `rule.split_gain` more of the
    variance of their nearest, each. Raises `ProbeError` when nothing is active.
    """
    rule = rule or Rule()
    alive = (alive_in(a, rule), alive_in(b, rule))
    index = [np.flatnonzero(side) for side in alive]
    if min(len(side) for side in index) == 0:
        raise ProbeError(
            f"no latent of one of the bases is active on {rule.firings} of {a.samples} samples; give more inputs"
        )
    left, right = a.chosen(index[0]), b.chosen(index[1])
    price = 1 - rule.minimum
    by_chance, chance, levels = _chance(left, right, rule, seed)
    near = nearest(left, right, price=price)
    agreement, best = agreement_in(near)
    allowed = beating(near, levels, rule.minimum)
    plan = match_listed(allowed, price)
    links = [Link(int(i), int(j)) for i, j in plan.pairs]
    links = _grouped(links, left, right, allowed, rule)
    return placed(links, plan, near, (levels, best, chance), (agreement, by_chance), alive)


def placed(
    links: list[Link],
    plan: Plan,
    near: Candidates,
    values: Sequence[Sides],
    agreements: tuple[Agreement, Agreement],
    alive: Sides,
) -> Correspondence:
    """What was found among alive latents, written on all of them; `values` are levels, best and chance."""
    index = [np.flatnonzero(side) for side in alive]
    links = [replace(link, a=int(index[0][link.a]), b=int(index[1][link.b])) for link in links]
    inner = scipy.sparse.coo_array(near.matrix(1 - near.costs))
    shape = (len(alive[0]), len(alive[1]))
    whole = scipy.sparse.csr_array((inner.data, (index[0][inner.row], index[1][inner.col])), shape=shape)
    every = []
    for pair in values:
        sides = tuple(np.full(n, np.nan) for n in shape)
        for side, value, chosen in zip(sides, pair, index):
            side[chosen] = value
        every.append(sides)
    levels, best, chance = every
    return Correspondence(links, plan, whole, levels, alive, best, chance, *agreements)  # type: ignore[arg-type]


def alive_in(codes: Codes, rule: Rule) -> np.ndarray:
    """Latents that vary and are active on enough samples, `[F]`."""
    return (codes.firings >= rule.firings) & (codes.variance > 0)


def match_listed(pairs: Candidates, price: float) -> Plan:
    """The one-to-one matching of least cost among listed pairs; what is not matched costs `price`."""
    n, m = pairs.shape
    return solve(ListedCost(pairs, price), method="partial" if n * m <= DENSE else "sparse", threshold=price)


def agreement_in(near: Candidates) -> tuple[Agreement, Sides]:
    """Agreement over the nearest pairs, and the best similarity of every latent of either side."""
    best = best_of(near)
    matrix = near.matrix(1 - near.costs)
    pairs = match_listed(near, 1.0).pairs
    matched = np.asarray(matrix[pairs[:, 0], pairs[:, 1]]).ravel() if len(pairs) else np.zeros(0)
    return Agreement.of(matched, *best), best


def best_of(near: Candidates) -> Sides:
    """Largest similarity of every row `[n]` and of every column `[m]`; 0 for those of no listed pair."""
    rows, columns = np.zeros(near.shape[0]), np.zeros(near.shape[1])
    np.maximum.at(rows, near.sources, 1 - near.costs)
    np.maximum.at(columns, near.targets, 1 - near.costs)
    return rows, columns


def _chance(a: Codes, b: Codes, rule: Rule, seed: int) -> tuple[Agreement, Sides, Sides]:
    """After the samples of B were shuffled: agreement, best similarities, and the level every latent must beat."""
    shuffles = int(np.clip(-(-DRAWS // min(a.width, b.width)), 1, SHUFFLES))
    found = []
    for draw in range(shuffles):
        near = nearest(a, b.shuffled(seed + draw), price=1 - rule.minimum)
        if draw == 0:
            agreement, _ = agreement_in(near)
        found.append(best_of(near))
    sides = [np.stack([best[side] for best in found]) for side in (0, 1)]
    levels = tuple(chance_levels(best, codes.firings, rule.quantile) for best, codes in zip(sides, (a, b)))
    return agreement, found[0], levels  # type: ignore[return-value]


def chance_levels(best: np.ndarray, firings: np.ndarray, quantile: float) -> np.ndarray:
    """`[F]`: the quantile of the best matches by chance `[draws, F]` among latents that are active about as often.

    Rare latents find better matches by chance, so that the level never rises with the firings.
    """
    draws, width = best.shape
    bins = int(np.clip(draws * width // BIN, 1, 10))
    order = np.argsort(-firings, kind="stable")
    levels, highest = np.empty(width), 0.0
    for part in np.array_split(order, bins):
        if len(part):
            highest = max(highest, float(np.quantile(best[:, part], quantile)))
            levels[part] = highest
    return levels


def beating(near: Candidates, levels: Sides, minimum: float) -> Candidates:
    """The pairs that beat the null of both latents and the minimum."""
    floor = np.maximum(np.maximum(levels[0][near.sources], levels[1][near.targets]), minimum)
    kept = 1 - near.costs > floor
    return Candidates(near.shape, near.keys[kept], near.costs[kept], near.complete)


def _grouped(links: list[Link], a: Codes, b: Codes, allowed: Candidates, rule: Rule) -> list[Link]:
    """The links with splits and merges among them."""
    matrix = allowed.matrix(1 - allowed.costs)
    forward = {link.a: link.b for link in links}
    backward = {link.b: link.a for link in links}
    splits = _splits(a, b, matrix, forward, backward, rule.split_gain, set())
    taken = set(splits)
    parts = {part for members, _ in splits.values() for part in members}
    merges = _splits(b, a, matrix.T.tocsr(), backward, forward, rule.split_gain, parts, taken)
    found = [Link(i, j, SPLIT, together) for i, (members, together) in splits.items() for j in members]
    found += [Link(i, j, MERGED, together) for j, (members, together) in merges.items() for i in members]
    used = taken | {i for members, _ in merges.values() for i in members}
    return [link for link in links if link.a not in used] + found


def _splits(
    one: Codes,
    many: Codes,
    matrix: scipy.sparse.csr_array,
    partner: dict[int, int],
    back: dict[int, int],
    gain: float,
    closed: set[int],
    excluded: set[int] | None = None,
) -> dict[int, tuple[list[int], float]]:
    """`{latent of one: (latents of many that together make it, correlation)}`.

    Candidates are the latents of `many` in no pair, each at its nearest of `one`; those in `closed` (of one) are no
    centres, those in `excluded` (of many) no parts.
    """
    columns = matrix.T.tocsr()
    near: dict[int, list[tuple[float, int]]] = {}
    for part in range(many.width):
        entries = slice(columns.indptr[part], columns.indptr[part + 1])
        if part in back or entries.start == entries.stop or part in (excluded or ()):
            continue
        place = int(columns.data[entries].argmax())
        centre = int(columns.indices[entries][place])
        near.setdefault(centre, []).append((float(columns.data[entries][place]), part))
    found = {}
    for centre, loose in near.items():
        if centre in closed or centre not in partner or partner[centre] in (excluded or ()):
            continue
        members = [partner[centre], *(part for _, part in sorted(loose, reverse=True)[: PARTS - 1])]
        chosen, together = combined(one, centre, many, members, gain)
        if len(chosen) > 1:
            found[centre] = (chosen, together)
    return found


def combined(one: Codes, centre: int, many: Codes, members: Sequence[int], gain: float) -> tuple[list[int], float]:
    """The members whose codes, added up with non-negative weights, explain a latent, and the correlation of the sum.

    The first member stays; others join in turn (forward selection, non-negative least squares) while the best of them
    explains at least `gain` more of the latent's variance.
    """
    rows = scipy.sparse.vstack([one.latents[[centre]], many.latents[list(members)]], format="csr").astype(np.float64)
    means = np.concatenate([one.mean[[centre]], many.mean[list(members)]])
    covariance = (rows @ rows.T).toarray() / one.samples - np.outer(means, means)
    variance, cross, gram = covariance[0, 0], covariance[0, 1:], covariance[1:, 1:]
    chosen = [0]
    explained = _explained(gram, cross, variance, chosen)
    while len(chosen) < len(members):
        trials = [(_explained(gram, cross, variance, [*chosen, k]), k) for k in range(len(members)) if k not in chosen]
        best, k = max(trials)
        if best < explained + gain:
            break
        chosen, explained = [*chosen, k], best
    return [members[k] for k in chosen], float(np.sqrt(explained))


def _explained(gram: np.ndarray, cross: np.ndarray, variance: float, chosen: list[int]) -> float:
    """Share of the variance that the best non-negative combination of the chosen explains."""
    part = gram[np.ix_(chosen, chosen)]
    scale = np.sqrt(np.maximum(part.diagonal(), 1e-300))
    values, vectors = np.linalg.eigh(part / np.outer(scale, scale))
    root = vectors * np.sqrt(np.maximum(values, 1e-12))
    weights, _ = scipy.optimize.nnls(root.T, np.linalg.solve(root, cross[chosen] / scale))
    return float(np.clip(weights @ (cross[chosen] / scale) / max(variance, 1e-300), 0, 1))
