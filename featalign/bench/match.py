"""`featalign bench match`: planted sparse codes of two clients put in correspondence: time, memory, what was found."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import scipy.sparse

from featalign.align.correspondence import OWN, SPLIT, correspond
from featalign.errors import BadOption
from featalign.transport.codes import Codes

BATCH = 16_384
NOISE, DROPPED = 0.3, 0.1  # of log activation, and of entries that a client does not see


@dataclass(frozen=True)
class MatchRow:
    """One planted problem.

    Attributes:
        latents, samples, active: of each client, the shared inputs, and latents active per sample.
        seconds: of the match, codes given; cpu_seconds: of this process in it, which other work does not stretch.
        peak_gb: largest memory of the process.
        precision, recall: of pairs; own: share of the own features found; splits: share of the split ones named so.
        gap: relative, of the plan's certificate.
        survivors: pairs left after shuffling, as a share of the latents.
    """

    latents: int
    samples: int
    active: int
    seconds: float
    cpu_seconds: float
    peak_gb: float
    precision: float
    recall: float
    own: float
    splits: float
    gap: float
    survivors: float | None = None


def planted_codes(
    latents: int, samples: int, active: int, seed: int = 0
) -> tuple[Codes, Codes, np.ndarray, np.ndarray, int]:
    """Codes of two clients, the feature behind each of their latents, and how many features are split.

    Of the features of A, 70 % are shared one to one, 5 % are split in two halves by context in B, the rest are A's own;
    B has own ones for the rest. Order is random, strengths are noisy, and either client misses a tenth of the entries.
    """
    rng = np.random.default_rng(seed)
    shared, split = round(0.7 * latents), round(0.05 * latents)
    own = latents - shared - split
    behind_a = np.arange(latents)
    behind_b = np.concatenate([
        np.arange(shared + split), np.arange(shared, shared + split), latents + np.arange(own - split)
    ])  # fmt: skip
    order_a, order_b = rng.permutation(latents), rng.permutation(len(behind_b))
    place_a, place_b = np.full(2 * latents, -1), np.full(2 * latents, -1)
    place_a[behind_a[order_a]] = np.arange(latents)
    where = np.argsort(order_b)  # of latents of B before their order was drawn
    place_b[behind_b[: shared + split]] = where[: shared + split]
    place_b[latents : latents + own - split] = where[shared + 2 * split :]
    other_half = np.full(2 * latents, -1)
    other_half[shared : shared + split] = where[shared + split : shared + 2 * split]
    parts: tuple[list[scipy.sparse.csr_array], ...] = ([], [])
    for start in range(0, samples, BATCH):
        count = min(BATCH, samples - start)
        features = rng.integers(0, 2 * latents - shared - 2 * split, (count, round(1.25 * active)))
        strength = rng.gamma(4, 0.25, features.shape)
        halves = (rng.random(features.shape) < 0.5) & (other_half[features] >= 0)
        columns = place_a[features], np.where(halves, other_half[features], place_b[features])
        for part, column in zip(parts, columns):
            kept = (column >= 0) & (rng.random(column.shape) > DROPPED)
            values = strength * np.exp(NOISE * rng.standard_normal(column.shape))
            part.append(_rows(np.where(kept, column, -1), values.astype(np.float32), latents))
    a, b = (Codes.gathered(part) for part in parts)
    return a, b, behind_a[order_a], behind_b[order_b], split


def _rows(columns: np.ndarray, values: np.ndarray, width: int) -> scipy.sparse.csr_array:
    rows, places = np.nonzero(columns >= 0)
    found = scipy.sparse.csr_array((values[rows, places], (rows, columns[rows, places])), shape=(len(columns), width))
    found.sum_duplicates()
    return found


def match_row(latents: int = 2048, samples: int = 100_000, active: int = 32, shuffled: bool = True) -> MatchRow:
    """Put one planted problem in correspondence."""
    if latents < 64 or samples < 1000 or not 0 < active <= latents // 4:
        raise BadOption("give 64 latents or more, 1000 samples or more, and at most a quarter of the latents active")
    a, b, behind_a, behind_b, split = planted_codes(latents, samples, active)
    start, used = time.perf_counter(), time.process_time()
    found = correspond(a, b)
    seconds, cpu = time.perf_counter() - start, time.process_time() - used
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    right = sum(behind_a[link.a] == behind_b[link.b] for link in found.links)
    common = np.isin(behind_a, behind_b)
    kinds = found.kinds(0)
    halved = {int(behind_a[link.a]) for link in found.links if link.kind == SPLIT}
    values, counts = np.unique(behind_b, return_counts=True)
    truly = {int(value) for value in values[counts == 2]}
    survivors = len(correspond(a, b.shuffled(1)).links) / latents if shuffled else None
    return MatchRow(
        latents, samples, active, seconds, cpu, peak,
        precision=right / max(1, len(found.links)), recall=right / (int(common.sum()) + split),
        own=float((kinds[~common] == OWN).mean()), splits=len(halved & truly) / max(1, len(truly)),
        gap=found.plan.gap / max(abs(found.plan.value), 1e-300), survivors=survivors,
    )  # fmt: skip


def table_rows(rows: list[MatchRow]) -> Iterator[dict[str, str | int]]:
    """Rows as they are printed."""
    for row in rows:
        yield {
            "latents": row.latents, "samples": row.samples, "active": row.active, "seconds": f"{row.seconds:.1f}",
            "cpu seconds": f"{row.cpu_seconds:.1f}", "peak GB": f"{row.peak_gb:.2f}",
            "precision": f"{row.precision:.3f}", "recall": f"{row.recall:.3f}", "own": f"{row.own:.3f}",
            "splits": f"{row.splits:.3f}", "gap": f"{row.gap:.1e}",
            "after shuffling": "" if row.survivors is None else f"{100 * row.survivors:.2f} %",
        }  # fmt: skip
