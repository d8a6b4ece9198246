"""How two sets of latents agree, from the similarities of a best one-to-one matching and of every latent's nearest."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from featalign.measure.scores import SHARED


@dataclass(frozen=True)
class Agreement:
    """Agreement of `n` latents with `m`.

    Attributes:
        mcc: mean similarity of the best one-to-one matching, over the smaller set; what stays unmatched counts zero.
        mmcs: mean of each latent's largest similarity, first to second; mmcs_back: second to first (Sharkey et al.
            2022).
        shared: share of the smaller set matched at a similarity of at least 0.7.
    """

    mcc: float = float("nan")
    mmcs: float = float("nan")
    mmcs_back: float = float("nan")
    shared: float = float("nan")

    @classmethod
    def of(cls, matched: np.ndarray, best: np.ndarray, best_back: np.ndarray) -> Agreement:
        """From similarities of the matched pairs `[p]` and the largest of every latent, `[n]` and `[m]`."""
        smaller = min(len(best), len(best_back))
        if smaller == 0:
            return cls()
        return cls(
            float(matched.sum() / smaller),
            float(best.mean()),
            float(best_back.mean()),
            float((matched >= SHARED).sum() / smaller),
        )

    def to_dict(self) -> dict[str, float]:
        """Plain values, as JSON holds them."""
        return asdict(self)
