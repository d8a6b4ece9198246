"""A number with what is needed to believe it: null, interval and coverage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.stats import bootstrap

RESAMPLES = 400


@dataclass(frozen=True)
class Score:
    """A measured value.

    Attributes:
        value: the statistic.
        null: what the same statistic gives where there is nothing to find (shuffled or untrained).
        interval: 95 % bootstrap interval of the value over its items (units, latents, samples, seeds).
        coverage: share of the items that the value speaks for (alive, matched, defined).
        count: items behind it.
    """

    value: float
    null: float
    interval: tuple[float, float]
    coverage: float
    count: int

    @property
    def evidence(self) -> bool:
        """Whether the interval excludes the null; False where anything is undefined."""
        low, high = self.interval
        return bool(np.isfinite([low, high, self.null]).all()) and not low <= self.null <= high

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON holds them."""
        return {**asdict(self), "evidence": self.evidence}


def mean_score(
    items: Sequence[float] | np.ndarray,
    null: float = float("nan"),
    coverage: float | None = None,
    statistic: Callable[..., Any] = np.mean,
    seed: int = 0,
) -> Score:
    """Score of a statistic (mean by default) of `items [n]`; NaN items are left out and lower the coverage."""
    items = np.asarray(items, dtype=float)
    kept = items[np.isfinite(items)]
    if len(kept) == 0:
        return Score(float("nan"), null, (float("nan"), float("nan")), 0.0, 0)
    value = float(statistic(kept))
    spread = resampled(kept, statistic, seed)
    low, high = np.quantile(spread, [0.025, 0.975])
    low, high = min(low, value), max(high, value)  # equal items differ from their mean by rounding
    covered = len(kept) / len(items) if coverage is None else coverage
    return Score(value, float(null), (float(low), float(high)), float(covered), len(kept))


def centred_interval(
    value: float, items: np.ndarray, statistic: Callable[..., Any], seed: int = 0
) -> tuple[float, float]:
    """95 % bootstrap interval of a statistic that resampling shifts: quantiles about the resamples' own mean.

    It holds the value whatever the shift. `statistic(items, axis)` as in `scipy.stats.bootstrap`.
    """
    spread = resampled(items, statistic, seed)
    low, high = np.quantile(spread - spread.mean(), [0.025, 0.975])
    return float(value + min(low, 0.0)), float(value + max(high, 0.0))


def resampled(items: np.ndarray, statistic: Callable[..., Any], seed: int = 0) -> np.ndarray:
    """The statistic of `RESAMPLES` bootstrap samples of the items (`scipy.stats.bootstrap`)."""
    if len(items) < 2:
        return np.full(RESAMPLES, float(statistic(items, axis=-1)))
    draw = np.random.default_rng(seed)
    options: dict[str, Any] = {"n_resamples": RESAMPLES, "vectorized": True, "method": "percentile", "batch": 50}
    return bootstrap((items,), statistic, axis=-1, random_state=draw, **options).bootstrap_distribution
