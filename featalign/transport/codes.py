"""Sparse codes of one client, and the pairs of latents of two clients whose codes correlate most.

The correlations of 16k by 16k latents over a million samples are never held: they are made a block of latents at a
time from the active entries alone, and of each block the largest of every row and column are kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import scipy.sparse

from featalign.errors import ProbeError
from featalign.transport.candidates import CROWDED, Candidates
from featalign.transport.checks import require_finite
from featalign.transport.costs import BLOCK_ENTRIES, GroundCost

KEEP = 32  # correlations kept of every row and of every column
WHOLE = 2**20  # entries up to which all positive correlations are kept
CROWD = 1 / 30  # multiplications of sparse codes, as a share of the dense product's, from which dense ones are faster
PART = 2**24  # entries worked on at a time
CONSTANT = 1e-12  # variance up to which a latent says nothing


@dataclass(frozen=True, eq=False)
class Codes:
    """Codes of one client: `rows [samples, F]` float32, sparse; eight bytes for each active entry."""

    rows: scipy.sparse.csr_array

    @classmethod
    def gathered(cls, batches: Iterable[Any]) -> Codes:
        """From batches of codes `[samples, F]`: arrays, tensors, sparse arrays; raises `NotFinite` and `ProbeError`."""
        parts = [sparse_rows(batch) for batch in batches]
        if not parts or sum(part.shape[0] for part in parts) == 0:
            raise ProbeError("no samples were seen; the inputs are empty")
        return cls(parts[0] if len(parts) == 1 else scipy.sparse.vstack(parts, format="csr"))

    @property
    def samples(self) -> int:
        """Rows seen."""
        return self.rows.shape[0]

    @property
    def width(self) -> int:
        """Latents `F`."""
        return self.rows.shape[1]

    @cached_property
    def firings(self) -> np.ndarray:
        """Samples on which each latent is active, `[F]`."""
        return np.bincount(self.rows.indices, minlength=self.width)

    @cached_property
    def mean(self) -> np.ndarray:
        """`[F]` float64."""
        return self._sums(1) / self.samples

    @cached_property
    def variance(self) -> np.ndarray:
        """`[F]` float64, normalised by the count."""
        return np.maximum(self._sums(2) / self.samples - self.mean**2, 0)

    @cached_property
    def largest(self) -> np.ndarray:
        """Largest code of each latent, `[F]`."""
        return self.rows.max(axis=0).toarray().ravel().astype(np.float64)

    def _sums(self, power: int) -> np.ndarray:
        total = np.zeros(self.width)
        for start in range(0, self.rows.nnz, PART):
            part = slice(start, start + PART)
            values = self.rows.data[part].astype(np.float64) ** power
            total += np.bincount(self.rows.indices[part], values, minlength=self.width)
        return total

    @cached_property
    def latents(self) -> scipy.sparse.csr_array:
        """The same entries by latents, `[F, samples]`."""
        return self.rows.T.tocsr()

    def chosen(self, latents: np.ndarray) -> Codes:
        """Codes of some latents, in that order."""
        whole = len(latents) == self.width and (latents == np.arange(self.width)).all()
        return self if whole else Codes(scipy.sparse.csr_array(self.rows[:, latents]))

    def shuffled(self, seed: int) -> Codes:
        """The same codes with their samples in random order: every latent keeps what it does, no pair is real."""
        order = np.random.default_rng(seed).permutation(self.samples)
        return Codes(scipy.sparse.csr_array(self.rows[order]))


def sparse_rows(batch: Any) -> scipy.sparse.csr_array:
    """A batch of codes `[samples, F]` as float32 in sparse rows; raises `NotFinite`."""
    if not scipy.sparse.issparse(batch):
        array = batch.detach().cpu().float().numpy() if hasattr(batch, "detach") else np.asarray(batch, np.float32)
        batch = array.reshape(-1, array.shape[-1])
    found = scipy.sparse.csr_array(batch, dtype=np.float32)
    require_finite(found.data, "codes")
    return found


def nearest(a: Codes, b: Codes, keep: int = KEEP, price: float = 0.7) -> Candidates:
    """Pairs of latents by `1 - corr`: the `keep` nearest of every latent of either client, and those below `price`.

    Only positive correlations count. Of small problems all of them are kept. Raises `ProbeError` for codes of
    different samples.
    """
    if a.samples != b.samples:
        raise ProbeError(f"{a.samples} samples of A and {b.samples} of B; both clients must see the same inputs")
    return nearest_in(correlation_blocks(a, b), (a.width, b.width), keep, price)


def nearest_in(
    blocks: Iterable[tuple[slice, np.ndarray]], shape: tuple[int, int], keep: int = KEEP, price: float = 0.7
) -> Candidates:
    """The same of any similarities `[n, m]` of at most 1, given as blocks of rows."""
    n, m = shape
    keep = max(n, m) if n * m <= WHOLE else keep
    columns_best = np.full((min(keep, n), m), -np.inf, np.float32)
    columns_at = np.zeros((min(keep, n), m), np.int64)
    keys, values, complete = [], [], True
    for part, block in blocks:
        chosen = block > 1 - price
        if chosen.sum() > CROWDED * keep * len(block):
            complete, chosen = False, np.zeros(block.shape, dtype=bool)
        if keep < m:
            np.put_along_axis(chosen, np.argpartition(block, m - keep, axis=1)[:, m - keep :], True, axis=1)
            _keep_columns(columns_best, columns_at, block, part.start)
        else:
            chosen[:] = True
        chosen &= block > 0
        i, j = np.nonzero(chosen)
        keys.append((i + part.start) * np.int64(m) + j)
        values.append(block[i, j])
    if keep < m:
        k, j = np.nonzero(columns_best > 0)
        keys.append(columns_at[k, j] * m + j)
        values.append(columns_best[k, j].astype(np.float64))
    found, first = np.unique(np.concatenate(keys), return_index=True)
    return Candidates((n, m), found, 1 - np.concatenate(values)[first], complete)


def cosine_blocks(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Cosines `[r, m]` of directions `a [n, d]` in a slice with `b [m, d]`; zero for those of no length."""
    left, right = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-300) for x in (a, b))
    step = max(1, BLOCK_ENTRIES // len(b))
    for start in range(0, len(a), step):
        part = slice(start, min(start + step, len(a)))
        yield part, left[part] @ right.T


def _keep_columns(best: np.ndarray, at: np.ndarray, block: np.ndarray, start: int) -> None:
    """Merge a block of rows into the largest entries of every column, `best [k, m]` in rows `at [k, m]`, in place."""
    k = len(best)
    if len(block) > k:
        rows = np.argpartition(block, len(block) - k, axis=0)[len(block) - k :]
        block = np.take_along_axis(block, rows, axis=0)
    else:
        rows = np.broadcast_to(np.arange(len(block))[:, None], block.shape)
    values, places = np.concatenate([best, block.astype(np.float32)]), np.concatenate([at, rows + start])
    top = np.argpartition(values, len(values) - k, axis=0)[len(values) - k :]
    best[:], at[:] = np.take_along_axis(values, top, axis=0), np.take_along_axis(places, top, axis=0)


def correlation_blocks(a: Codes, b: Codes) -> Iterator[tuple[slice, np.ndarray]]:
    """Correlations `[r, m]` float64 of the latents of `a` in a slice with all of `b`; zero where one is constant."""
    n, m = a.width, b.width
    step = max(1, BLOCK_ENTRIES // m)
    work = float(np.diff(a.rows.indptr).astype(np.float64) @ np.diff(b.rows.indptr))
    dense = work > CROWD * a.samples * n * m
    scale_a, scale_b = _inverse_deviation(a), _inverse_deviation(b)
    for start in range(0, n, step):
        part = slice(start, min(start + step, n))
        block = _dense_products(a, b, part) if dense else _sparse_products(a, b, part)
        block /= a.samples
        block -= np.outer(a.mean[part], b.mean)
        block *= scale_a[part][:, None]
        block *= scale_b
        yield part, block


def _inverse_deviation(codes: Codes) -> np.ndarray:
    """`1 / std`, zero where the variance is rounding of the second moment."""
    floor = np.maximum(CONSTANT * (codes.variance + codes.mean**2), 1e-300)
    return np.where(codes.variance > floor, 1 / np.sqrt(np.maximum(codes.variance, floor)), 0.0)


def _sparse_products(a: Codes, b: Codes, part: slice) -> np.ndarray:
    """`sum_s a_si b_sj`, `[r, m]`: of each latent, the rows of `b` on which it is active are added up."""
    found = np.empty((part.stop - part.start, b.width))
    starts, data, indices, latents = b.rows.indptr, b.rows.data, b.rows.indices, a.latents
    lengths = np.diff(starts)
    for place, latent in enumerate(range(part.start, part.stop)):
        entries = slice(latents.indptr[latent], latents.indptr[latent + 1])
        samples, value = latents.indices[entries], latents.data[entries].astype(np.float64)
        length = lengths[samples]
        before = np.cumsum(length) - length
        flat = np.arange(int(length.sum())) + np.repeat(starts[samples] - before, length)
        found[place] = np.bincount(indices[flat], np.repeat(value, length) * data[flat], minlength=b.width)
    return found


def _dense_products(a: Codes, b: Codes, part: slice) -> np.ndarray:
    """The same by dense products of parts of the samples."""
    found = np.zeros((part.stop - part.start, b.width))
    step = max(1, PART // (a.width + b.width))
    for start in range(0, a.samples, step):
        rows = slice(start, start + step)
        left = a.rows[rows].toarray()[:, part].astype(np.float64)
        found += left.T @ b.rows[rows].toarray().astype(np.float64)
    return found


class ListedCost(GroundCost):
    """The costs of listed pairs `[n, m]`; all others cost `rest`."""

    def __init__(self, pairs: Candidates, rest: float = 1.0) -> None:
        self.pairs, self.rest, self.shape = pairs, rest, pairs.shape
        self.matrix = pairs.matrix(pairs.costs)

    def rows(self, index: slice | np.ndarray) -> np.ndarray:
        part = self.matrix[index]
        block = np.full(part.shape, self.rest)
        block[np.repeat(np.arange(part.shape[0]), np.diff(part.indptr)), part.indices] = part.data
        return block

    def transposed(self) -> ListedCost:
        n, m = self.shape
        keys = self.pairs.targets * np.int64(n) + self.pairs.sources
        order = np.argsort(keys)
        turned = Candidates((m, n), keys[order], self.pairs.costs[order], self.pairs.complete)
        return ListedCost(turned, self.rest)
