"""Candidate pairs of a large cost: the few that an optimal plan could use, and the sweep that proves it or finds more.

A pair is the key `i * m + j`; keys are kept sorted, so that they are rows of a CSR matrix as they stand.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse

from featalign.transport.costs import GroundCost

CROWDED = 6  # candidates per row beyond CROWDED * k (ties, generous thresholds) are thinned out at random


@dataclass(frozen=True)
class Candidates:
    """Sorted keys `[e]` of pairs of a cost of `shape`, and their costs `[e]` in float64.

    `complete`: every pair below the price of unmatched mass is among them, so that nothing is lost.
    """

    shape: tuple[int, int]
    keys: np.ndarray
    costs: np.ndarray
    complete: bool = False

    @property
    def sources(self) -> np.ndarray:
        """`[e]`."""
        return self.keys // self.shape[1]

    @property
    def targets(self) -> np.ndarray:
        """`[e]`."""
        return self.keys % self.shape[1]

    def merged(self, keys: np.ndarray, costs: np.ndarray) -> Candidates:
        """With more pairs; those already there are ignored."""
        all_keys, first = np.unique(np.concatenate([self.keys, keys]), return_index=True)
        return Candidates(self.shape, all_keys, np.concatenate([self.costs, costs])[first])

    def clipped(self, level: float) -> Candidates:
        """With costs of at most `level`."""
        if level == np.inf:
            return self
        return Candidates(self.shape, self.keys, np.minimum(self.costs, level), self.complete)

    def c_transform(self, g: np.ndarray, price: float) -> np.ndarray:
        """`min(price, min_j (C_ij - g_j))` over the candidates, `[n]`."""
        f = np.full(self.shape[0], price)
        np.minimum.at(f, self.sources, self.costs - g[self.targets])
        return f

    def matrix(self, values: np.ndarray) -> scipy.sparse.csr_array:
        """CSR matrix with `values [e]` on the pairs."""
        starts = np.searchsorted(self.keys, np.arange(self.shape[0] + 1) * self.shape[1])
        return scipy.sparse.csr_array((values, self.targets, starts), shape=self.shape)


def select(
    cost: GroundCost, k: int, g: np.ndarray, price: float | None = None, always: np.ndarray | None = None
) -> Candidates:
    """About `k` cheapest pairs of every row and of every column, by cost less `g [m]`, and below `price` if given.

    Quantiles are read off evenly spaced samples of rows and columns. `always`: keys that are candidates in any case,
    so that a feasible plan exists.
    """
    n, m = cost.shape
    limits: np.ndarray | None = None
    rng = np.random.default_rng(0)
    keys, costs, complete = [], [], price is not None
    for part in cost.blocks():
        block = cost.rows(part)
        chosen = block < price if price is not None else np.ones(block.shape, dtype=bool)
        if chosen.sum() > CROWDED * k * len(block):
            complete = False
            limits = _column_limits(cost, k, g) if limits is None else limits
            chosen &= _cheapest(block, k, g, limits)
        if chosen.sum() > CROWDED * k * len(block):
            chosen = _thinned(chosen, k, rng)
        if always is not None:
            inside = always[(always >= part.start * m) & (always < part.stop * m)]
            chosen[inside // m - part.start, inside % m] = True
        i, j = np.nonzero(chosen)
        keys.append((i + part.start) * m + j)
        costs.append(block[i, j].astype(np.float64))
    return Candidates((n, m), np.concatenate(keys), np.concatenate(costs), complete)


def _cheapest(block: np.ndarray, k: int, g: np.ndarray, column_limits: np.ndarray) -> np.ndarray:
    """About `k` pairs of every row, and those within the limits of the columns."""
    m = block.shape[1]
    reduced = block - g.astype(block.dtype) if g.any() else block
    row_limits = _quantile(reduced[:, :: max(1, m // _sample_size(m, k))], k / m, axis=1)
    return (reduced <= row_limits[:, None]) | (reduced <= column_limits)


def sweep(
    cost: GroundCost, f: np.ndarray, g: np.ndarray, price: float, k: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One pass over the full cost: the c-transform of `g [m]`, at most `price`, and the pairs that forbid `f [n]`.

    Returns:
        f that is feasible on the full cost, `[n]` (lowered by the rounding of the cost's precision);
        keys and costs of pairs with `C_ij < f_i + g_j`, at most `CROWDED * k` per row on average.
    """
    feasible, keys, costs = np.empty(cost.shape[0]), [], []
    rng = np.random.default_rng(1)
    for part in cost.blocks():
        block = cost.rows(part)
        slack = block - g.astype(block.dtype)
        lowest = slack.min(axis=1).astype(np.float64)
        if block.dtype == np.float32:
            lowest -= 4 * np.finfo(np.float32).eps * (np.abs(lowest) + float(np.abs(g).max()))
        feasible[part] = np.minimum(lowest, price)
        limit = f[part] - 1e-12 * max(1e-300, float(np.abs(lowest).max()))
        broken = np.flatnonzero(lowest < limit)
        if len(broken):
            chosen = slack[broken] < limit[broken, None]
            if chosen.sum() > CROWDED * k * len(broken):
                chosen = _thinned(chosen, k, rng)
            i, j = np.nonzero(chosen)
            keys.append((broken[i] + part.start) * cost.shape[1] + j)
            costs.append(block[broken[i], j].astype(np.float64))
    if not keys:
        return feasible, np.zeros(0, dtype=np.int64), np.zeros(0)
    return feasible, np.concatenate(keys), np.concatenate(costs)


def _sample_size(size: int, k: int) -> int:
    """Samples from which the `k / size` quantile can be read to within about a third."""
    return min(size, max(256, 3 * size // k))


def _quantile(values: np.ndarray, share: float, axis: int) -> np.ndarray:
    size = values.shape[axis]
    rank = min(size - 1, round(share * size))
    return np.take(np.partition(values, rank, axis=axis), rank, axis=axis)


def _column_limits(cost: GroundCost, k: int, g: np.ndarray) -> np.ndarray:
    n = cost.shape[0]
    sample = cost.rows(np.linspace(0, n - 1, _sample_size(n, k)).astype(int))
    return _quantile(sample - g.astype(sample.dtype), k / n, axis=0)


def _thinned(chosen: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    """Keep each choice with the probability that leaves about `k` per row."""
    keep = np.minimum(1.0, k / np.maximum(chosen.sum(axis=1), 1))
    return chosen & (rng.random(chosen.shape, dtype=np.float32) < keep[:, None])
