"""Dictionary against dictionary: MCC, MMCS, shared fraction, seed consistency, relative norms and cycles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from featalign.errors import SpaceMismatch
from featalign.measure.arrays import rows
from featalign.measure.crosscoder import norm_shares
from featalign.measure.score import Score, mean_score

SHARED = 0.7  # cosine from which two latents count as the same


@dataclass(frozen=True)
class MatchScores:
    """How two sets of directions agree, `n` of the first against `m` of the second.

    Attributes:
        mcc: mean |cosine| of the best one-to-one matching (Hungarian), over the smaller set.
        signed_mcc: the same with signed cosines.
        mmcs: mean of each row's largest cosine, first to second; mmcs_back: second to first (Sharkey et al. 2022).
        shared: share of the smaller set matched at a signed cosine of at least 0.7.
        pairs: `[p, 2]` of the signed matching.
        similarity: signed cosine of each pair.
        null: the mcc of random directions of the same counts and dimension.
    """

    mcc: float
    signed_mcc: float
    mmcs: float
    mmcs_back: float
    shared: float
    null: float
    pairs: np.ndarray
    similarity: np.ndarray

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON holds them."""
        facts = asdict(self)
        return {name: value for name, value in facts.items() if name not in {"pairs", "similarity"}}


def match_scores(
    a: torch.Tensor,
    b: torch.Tensor,
    alive_a: torch.Tensor | None = None,
    alive_b: torch.Tensor | None = None,
    seed: int = 0,
) -> MatchScores:
    """Scores between atoms `a [n, units]` and `b [m, units]`; dead latents are left out where masks are given.

    Atoms of different spaces cannot be compared by direction: pass codes transposed, `[F, samples]`, centred, and the
    cosines are correlations. Raises `SpaceMismatch` for atoms of different widths.
    """
    if a.shape[1] != b.shape[1]:
        raise SpaceMismatch(f"atoms of {a.shape[1]} and {b.shape[1]} units; compare codes on shared samples instead")
    kept_a = np.arange(len(a)) if alive_a is None else torch.nonzero(alive_a).flatten().numpy()
    kept_b = np.arange(len(b)) if alive_b is None else torch.nonzero(alive_b).flatten().numpy()
    if len(kept_a) == 0 or len(kept_b) == 0:
        empty = np.zeros((0, 2), dtype=int)
        return MatchScores(*(float("nan"),) * 6, empty, np.zeros(0))
    cosine = _unit(a[kept_a]) @ _unit(b[kept_b]).T
    rows, columns = linear_sum_assignment(-np.abs(cosine))
    signed_rows, signed_columns = linear_sum_assignment(-cosine)
    matched = cosine[signed_rows, signed_columns]
    generator = torch.Generator().manual_seed(seed)
    noise = [_unit(torch.randn(len(kept), a.shape[1], generator=generator)) for kept in (kept_a, kept_b)]
    random = np.abs(noise[0] @ noise[1].T)
    null_rows, null_columns = linear_sum_assignment(-random)
    return MatchScores(
        mcc=float(np.abs(cosine[rows, columns]).mean()),
        signed_mcc=float(matched.mean()),
        mmcs=float(cosine.max(1).mean()),
        mmcs_back=float(cosine.max(0).mean()),
        shared=float((matched >= SHARED).mean()),
        null=float(random[null_rows, null_columns].mean()),
        pairs=np.stack([kept_a[signed_rows], kept_b[signed_columns]], 1),
        similarity=matched,
    )


def pairwise_mcc(dictionaries: Sequence[torch.Tensor]) -> Score:
    """PW-MCC over seeds: mean MCC of all pairs of atom sets `[F, units]` (Paulo and Belrose 2025, arXiv:2501.16615)."""
    pairs = [(i, j) for i in range(len(dictionaries)) for j in range(i)]
    found = [match_scores(dictionaries[i], dictionaries[j]) for i, j in pairs]
    return mean_score([m.mcc for m in found], null=float(np.mean([m.null for m in found])) if found else float("nan"))


def relative_norms(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Crosscoder-style relative decoder norm `|b_j| / (|a_j| + |b_j|)`, `[F]`: 0 only in a, 1 only in b.

    `a [F, n]` and `b [F, m]` are the clients' blocks of a joint dictionary (Lindsey et al. 2024).
    """
    return norm_shares((a, b))[1].to(a.dtype)


def cycle_consistency(matches: Sequence[np.ndarray], seed: int = 0) -> Score:
    """Share of latents that come back to themselves around K clients: `matches[i]` maps client i to i+1, the last to 0.

    Each is `[F_i]` with -1 for unmatched; coverage is the share of latents that are matched all the way.
    Null: the last map shuffled.
    """
    at = np.arange(len(matches[0]))

    def around(maps: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        here = at.copy()
        for step in maps:
            here = np.where(here >= 0, np.asarray(step)[np.maximum(here, 0)], -1)
        return here == at, here >= 0

    back, alive = around(matches)
    shuffled = [*matches[:-1], np.random.default_rng(seed).permutation(matches[-1])]
    null_back, null_alive = around(shuffled)
    null = float(null_back[null_alive].mean()) if null_alive.any() else float("nan")
    return mean_score(back[alive].astype(float), null=null, coverage=float(alive.mean()))


def _unit(atoms: torch.Tensor) -> np.ndarray:
    values = rows(atoms, "atoms").numpy()
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
