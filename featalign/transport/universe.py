"""Consistent matchings of K clients through a universe of atoms: `P_AB = P_A P_B^T` by construction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse
from scipy.optimize import linear_sum_assignment

from featalign.errors import TransportError
from featalign.transport.checks import as_cost


@dataclass(frozen=True)
class Universe:
    """Partial permutations `maps[k] [n_k, u]` of every client's units into `u` common atoms.

    `value` is the sum over pairs of clients and matched units of `threshold - cost` (higher is better).
    """

    maps: tuple[scipy.sparse.csr_array, ...]
    value: float
    sweeps: int

    def matching(self, k: int, l: int) -> scipy.sparse.csr_array:
        """`P_k P_l^T [n_k, n_l]`: cycle-consistent, whichever way round one goes."""
        return scipy.sparse.csr_array(self.maps[k] @ self.maps[l].T)

    @property
    def members(self) -> np.ndarray:
        """How many clients have each atom, `[u]`."""
        return np.sum([np.asarray(part.sum(axis=0)).ravel() for part in self.maps], axis=0).astype(int)


def universe(costs: Mapping[tuple[int, int], Any], threshold: float | None = None, max_sweeps: int = 50) -> Universe:
    """Match K clients at once from pairwise ground costs `costs[k, l] [n_k, n_l]`, one per unordered pair.

    Maximises the sum of `threshold - cost` over matched pairs of all clients by exact assignments of one client
    to the others in turn, from every client as first estimate; the best end is kept, so that the result does not depend
    on the order in which clients are named (up to exact ties). Units that no atom matches below `threshold` become
    atoms of their own; without a threshold everything that fits is matched.

    Raises `TransportError` when a pair is missing or sizes contradict each other.
    """
    similarity, sizes = _similarities(costs, threshold)
    k = len(sizes)
    totals = [sum(float(np.sort(similarity[i, j].max(axis=1)).sum()) for j in range(k) if j != i) for i in range(k)]
    order = sorted(range(k), key=lambda i: (-sizes[i], -totals[i]))  # by content, never by name
    best: tuple[float, list[np.ndarray], int] | None = None
    for first in order:
        labels, sweeps = _alternate(similarity, sizes, [first, *(i for i in order if i != first)], max_sweeps)
        value = _value(similarity, labels)
        if best is None or value > best[0] + 1e-9 * abs(best[0]):
            best = (value, labels, sweeps)
    value, labels, sweeps = best  # type: ignore[misc]
    used, flat = np.unique(np.concatenate(labels), return_inverse=True)
    parts = np.split(flat, np.cumsum(sizes)[:-1])
    maps = tuple(
        scipy.sparse.csr_array((np.ones(n), part, np.arange(n + 1)), shape=(n, len(used)))
        for n, part in zip(sizes, parts)
    )
    return Universe(maps, value, sweeps)


def _similarities(
    costs: Mapping[tuple[int, int], Any], threshold: float | None
) -> tuple[dict[tuple[int, int], np.ndarray], list[int]]:
    """`threshold - cost` for both orders of every pair; without a threshold, one above every cost."""
    matrices = {pair: as_cost(cost) for pair, cost in costs.items()}
    k = max((max(pair) for pair in matrices), default=0) + 1
    if k < 2:
        raise TransportError("a universe wants the costs of two clients or more")
    top = threshold if threshold is not None else max(float(c.max()) for c in matrices.values())
    top = top if threshold is not None else top + 0.01 * (abs(top) + 1e-12)
    similarity: dict[tuple[int, int], np.ndarray] = {}
    sizes = [0] * k
    for i in range(k):
        for j in range(i + 1, k):
            if (i, j) not in matrices and (j, i) not in matrices:
                raise TransportError(f"the cost between clients {i} and {j} is missing")
            cost = matrices[i, j] if (i, j) in matrices else matrices[j, i].T
            if sizes[i] not in (0, cost.shape[0]) or sizes[j] not in (0, cost.shape[1]):
                raise TransportError(
                    f"cost ({i}, {j}) has shape {cost.shape}; clients have {sizes[i]} and {sizes[j]} units"
                )
            sizes[i], sizes[j] = cost.shape
            similarity[i, j], similarity[j, i] = top - cost, (top - cost).T
    return similarity, sizes


def _alternate(
    similarity: dict[tuple[int, int], np.ndarray],
    sizes: list[int],
    order: list[int],
    max_sweeps: int,
) -> tuple[list[np.ndarray], int]:
    """Labels (an atom per unit) after assigning clients in turn until nothing improves."""
    labels: list[np.ndarray] = [np.zeros(0, dtype=int) for _ in sizes]
    labels[order[0]] = np.arange(sizes[order[0]])
    placed, sweep, value = [order[0]], 0, -np.inf
    for sweep in range(max_sweeps + 1):
        for client in order[1:] if sweep == 0 else order:
            others = [i for i in (placed if sweep == 0 else order) if i != client]
            labels[client] = _assign(similarity, labels, client, others, sizes[client])
            if sweep == 0:
                placed.append(client)
        now = _value(similarity, labels)
        if now <= value * (1 + 1e-12) + 1e-300:
            break
        value = now
    return labels, sweep


def _assign(
    similarity: dict[tuple[int, int], np.ndarray], labels: list[np.ndarray], client: int, others: list[int], n: int
) -> np.ndarray:
    """The best atoms for one client given the others; a new atom per unit is always open, at no gain."""
    u = 1 + max(int(labels[other].max(initial=-1)) for other in others)
    gain = np.zeros((n, u + n))
    for other in others:
        gain[:, labels[other]] += similarity[client, other]
    return linear_sum_assignment(gain, maximize=True)[1]


def _value(similarity: dict[tuple[int, int], np.ndarray], labels: list[np.ndarray]) -> float:
    total = 0.0
    for (i, j), gain in similarity.items():
        if i < j:
            _, rows, columns = np.intersect1d(labels[i], labels[j], return_indices=True)
            total += float(gain[rows, columns].sum())
    return total
