"""Which latents of two clients are one feature where no inputs are shared: by the geometry of their decoders alone.

Clients of one ancestry (a model and its fine-tuned copy, neighbouring layers of a residual stream) write in one basis:
their decoder directions are compared as they are. Clients of unrelated bases are compared by how each latent lies to
the others of its own client, by Gromov transport between the Gram matrices of the directions.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch

from featalign.align.correspondence import (
    BIN,
    DRAWS,
    Correspondence,
    Link,
    Rule,
    Sides,
    agreement_in,
    beating,
    best_of,
    match_listed,
    placed,
)  # fmt: skip
from featalign.errors import BadOption, SpaceMismatch
from featalign.measure.agreement import Agreement
from featalign.transport import Plan, gromov
from featalign.transport.candidates import Candidates
from featalign.transport.codes import cosine_blocks, nearest_in

GEOMETRIES = ("auto", "cosine", "gromov")
LARGEST = 640  # atoms up to which Gram matrices are matched: the work grows with the cube
RELATED = 0.1  # share of the latents that must find a partner beyond chance, or the bases look unrelated
GRAM_DRAWS = 3  # of random directions, for the null of Gram matrices


class MatchWarning(UserWarning):
    """A match that should be read with care; the message says why."""


def by_geometry(
    a: torch.Tensor, b: torch.Tensor, rule: Rule | None = None, geometry: str = "auto", seed: int = 0
) -> tuple[Correspondence, str]:
    """Put latents in correspondence by their atoms `a [F_a, n]`, `b [F_b, m]`; also returns what was compared.

    `geometry`: 'cosine' of decoder directions (one ancestry), 'gromov' of their Gram matrices, or 'auto': cosines
    where the spaces have one width and a tenth of the latents find a partner beyond chance, else Gram matrices. Null of
    cosines: the atoms of B rotated at random, which keeps all angles between them; of Gram matrices: random directions
    in place of B. Norms do not matter: folding thresholds or gains into the decoders (Balagansky et al. 2024,
    arXiv:2410.07656) changes no direction. Warns (`MatchWarning`) that no inputs were seen, and where the bases look
    unrelated. Raises `SpaceMismatch` for cosines of different widths, `BadOption` for too many atoms.
    """
    rule = rule or Rule()
    if geometry not in GEOMETRIES:
        raise BadOption(f"geometry '{geometry}'; choices: {', '.join(GEOMETRIES)}")
    left, right = (x.detach().double().cpu().numpy() for x in (a, b))
    same = left.shape[1] == right.shape[1]
    if geometry == "cosine" and not same:
        raise SpaceMismatch(
            f"atoms of {left.shape[1]} and {right.shape[1]} units have no cosine; give inputs, or geometry='gromov'"
        )
    small = max(len(left), len(right)) <= LARGEST
    if geometry == "cosine" or (geometry == "auto" and same):
        found = _by_cosine(left, right, rule, seed)
        if geometry == "cosine" or _related(found) or not small:
            return _told(found, "cosine"), "cosine"
    if not small:
        raise BadOption(
            f"{len(left)} and {len(right)} atoms of unrelated bases: Gram matrices are matched up to {LARGEST}; give "
            "inputs that both clients can read"
        )
    return _told(_by_gram(left, right, rule, seed), "gromov"), "gromov"


def _related(found: Correspondence) -> bool:
    return len({link.a for link in found.links}) >= RELATED * min(len(side) for side in found.levels)


def _told(found: Correspondence, how: str) -> Correspondence:
    what = {
        "cosine": "decoder directions, which mean one thing only for clients of one ancestry",
        "gromov": "Gram matrices of the decoders, which tell features apart only where their angles differ",
    }[how]
    warnings.warn(f"no inputs: latents are compared by the {what}", MatchWarning, stacklevel=4)
    if not _related(found):
        size = min(len(side) for side in found.levels)
        warnings.warn(
            f"the bases look unrelated: {len(found.links)} of {size} latents find a partner that beats the null; give "
            "inputs that both clients can read",
            MatchWarning,
            stacklevel=4,
        )
    return found


def directions_agreement(a: torch.Tensor, b: torch.Tensor) -> Agreement:
    """Agreement of the atoms' directions, `a [F_a, n]` and `b [F_b, n]`; its `mcc` is PW-MCC.

    The pairwise dictionary mean correlation coefficient (Song et al. 2025, arXiv:2505.20254) with signed cosines.
    """
    return agreement_in(_cosines(*(x.detach().double().cpu().numpy() for x in (a, b))))[0]


def _cosines(a: np.ndarray, b: np.ndarray) -> Candidates:
    return nearest_in(cosine_blocks(a, b), (len(a), len(b)))


def _by_cosine(a: np.ndarray, b: np.ndarray, rule: Rule, seed: int) -> Correspondence:
    near = _cosines(a, b)
    rng = np.random.default_rng(seed)
    draws = int(np.clip(-(-max(DRAWS, BIN) // min(len(a), len(b))), 1, 8))
    rotated = [_cosines(a, b @ _rotation(b.shape[1], rng)) for _ in range(draws)]
    levels = tuple(
        np.full(size, np.quantile([best_of(null)[side] for null in rotated], rule.quantile))
        for side, size in enumerate(near.shape)
    )
    plan = match_listed(beating(near, levels, rule.minimum), 1 - rule.minimum)  # type: ignore[arg-type]
    agreement, best = agreement_in(near)
    by_chance, chance = agreement_in(rotated[0])
    links = [Link(int(i), int(j)) for i, j in plan.pairs]
    return placed(links, plan, near, (levels, best, chance), (agreement, by_chance), _alive(a, b))  # type: ignore


def _rotation(size: int, rng: np.random.Generator) -> np.ndarray:
    """An orthogonal matrix drawn uniformly."""
    q, r = np.linalg.qr(rng.standard_normal((size, size)))
    return q * np.sign(np.diag(r))


def _alive(a: np.ndarray, b: np.ndarray) -> Sides:
    return np.ones(len(a), dtype=bool), np.ones(len(b), dtype=bool)


def _by_gram(a: np.ndarray, b: np.ndarray, rule: Rule, seed: int) -> Correspondence:
    plan, pairs, scores = _gram_pairs(a, b)
    rng = np.random.default_rng(seed)
    draws = [_gram_pairs(a, rng.standard_normal(b.shape)) for _ in range(GRAM_DRAWS)]
    level = float(np.quantile(np.concatenate([each for _, _, each in draws]), rule.quantile))
    _, null_pairs, null_scores = draws[0]
    kept = scores > max(level, rule.minimum)
    links = [Link(int(i), int(j)) for i, j in pairs[kept]]
    near, chance = (_scored(p, s, (len(a), len(b))) for p, s in ((pairs, scores), (null_pairs, null_scores)))
    levels = tuple(np.full(len(x), level) for x in (a, b))
    best, worst = best_of(near), best_of(chance)
    agreements = (Agreement.of(np.maximum(scores, 0), *best), Agreement.of(np.maximum(null_scores, 0), *worst))
    return placed(links, plan, near, (levels, best, worst), agreements, _alive(a, b))  # type: ignore[arg-type]


def _gram_pairs(a: np.ndarray, b: np.ndarray) -> tuple[Plan, np.ndarray, np.ndarray]:
    """Pairs of Gromov transport, and of each the correlation of its cosines with all other pairs on either side."""
    left, right = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-300) for x in (a, b))
    gram_a, gram_b = left @ left.T, right @ right.T
    plan = gromov(gram_a, gram_b)
    pairs = plan.pairs
    if len(pairs) < 3:
        return plan, pairs, np.zeros(len(pairs))
    rows_a, rows_b = (gram[np.ix_(side, side)] for gram, side in zip((gram_a, gram_b), pairs.T))
    off = ~np.eye(len(pairs), dtype=bool)
    rows_a, rows_b = (rows[off].reshape(len(pairs), -1) for rows in (rows_a, rows_b))
    rows_a, rows_b = (rows - rows.mean(1, keepdims=True) for rows in (rows_a, rows_b))
    scale = np.linalg.norm(rows_a, axis=1) * np.linalg.norm(rows_b, axis=1)
    return plan, pairs, (rows_a * rows_b).sum(1) / np.maximum(scale, 1e-300)


def _scored(pairs: np.ndarray, scores: np.ndarray, shape: tuple[int, int]) -> Candidates:
    keys = pairs[:, 0] * np.int64(shape[1]) + pairs[:, 1]
    kept = np.flatnonzero(scores > 0)
    order = kept[np.argsort(keys[kept])]
    return Candidates(shape, keys[order], 1 - scores[order])
