"""The law of presence: who can show up together, how often, and what importance that can deliver.

A law is subsets S of users with probabilities `q_S`. It can deliver an importance `p` when `p(A) <= q{S meets A}` for
every set A of users (Hall's condition for the transport polytope on the mask of membership, by max-flow min-cut).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse
from scipy.sparse.csgraph import breadth_first_order, maximum_flow

from featalign.errors import InfeasibleError, TransportError
from featalign.transport.checks import MASS_TOLERANCE, as_masses

FLOW_UNITS = 2**30  # one unit of mass in the integers of the flow solver
FEASIBLE = 1e-8  # mass that may stay undelivered by the rounding of the flow

Users = Sequence[int] | Sequence[bool] | np.ndarray


@dataclass(frozen=True)
class Feasibility:
    """What a law of presence can deliver.

    Attributes:
        feasible: whether some coupling meets both marginals.
        deliverable: the largest mass that can be delivered (max flow), 1 when feasible.
        worst: users A with the largest `p(A) - q{S meets A}`, empty when feasible.
        importance, presence: `p(A)` and `q{S meets A}` of that set.
    """

    feasible: bool
    deliverable: float
    worst: np.ndarray
    importance: float
    presence: float

    def __str__(self) -> str:
        if self.feasible:
            return "feasible: every user's importance can be delivered"
        shown = ", ".join(map(str, self.worst[:8])) + (", ..." if len(self.worst) > 8 else "")
        return (
            f"infeasible: users {{{shown}}} carry importance {self.importance:.4g} and somebody of them is present in "
            f"only {self.presence:.4g} of rounds; deliverable mass {self.deliverable:.6g}"
        )


class Law:
    """Subsets and their probabilities as a membership list: `users [e]` of subset `of [e]`, in order of subsets."""

    def __init__(self, subsets: Iterable[Users], q: Any, users: int) -> None:
        lists = [np.unique(user_index(subset, users)) for subset in subsets]
        if not lists:
            raise TransportError("no subsets were given: empty support; list who can show up together")
        empty = [k for k, members in enumerate(lists) if len(members) == 0]
        if empty:
            raise TransportError(
                f"subset {empty[0]} is empty: empty support; rounds in which nobody shows up do not count"
            )
        self.users = np.concatenate(lists)
        sizes = np.array([len(members) for members in lists])
        self.starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        self.of = np.repeat(np.arange(len(lists)), sizes)
        self.q = probabilities(q, len(lists), "q")

    def softmax(self, theta: np.ndarray) -> np.ndarray:
        """`w_{i|S}` for every membership `[e]`; `InfeasibleError` when nobody of a subset carries importance."""
        return self.softmax_and_logs(theta)[0]

    def softmax_and_logs(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The same, and `log sum_(i in S) exp(theta_i)` of every subset."""
        logits = theta[self.users]
        top = np.maximum.reduceat(logits, self.starts)
        if np.isneginf(top).any():
            raise InfeasibleError(
                f"nobody of subset {int(np.argmin(top))} carries importance; its rounds deliver to no one: drop the "
                "subset, or give its users some importance"
            )
        weights = np.exp(logits - top[self.of])
        sums = np.add.reduceat(weights, self.starts)
        return weights / sums[self.of], top + np.log(sums)

    def delivered(self, weights: np.ndarray, users: int) -> np.ndarray:
        """`phat_i = sum_S q_S w_{i|S}`, `[users]`."""
        return np.bincount(self.users, weights=weights * self.q[self.of], minlength=users)


def feasibility(p: Any, subsets: Iterable[Users], q: Any) -> Feasibility:
    """Hall's condition `p(A) <= q{S meets A}` for all A, by max flow and its minimum cut.

    Raises `TransportError` on masses that are negative or do not sum to one, and on empty subsets.
    """
    p = probabilities(p, None, "p")
    return verdict(p, Law(subsets, q, len(p)))


def verdict(p: np.ndarray, law: Law) -> Feasibility:
    n, k = len(p), len(law.q)
    units_q, units_p = (np.round(part * FLOW_UNITS).astype(np.int64) for part in (law.q, p))
    source, sink = n + k, n + k + 1
    ends = (
        np.concatenate([np.full(k, source), n + law.of, np.arange(n)]),
        np.concatenate([n + np.arange(k), law.users, np.full(n, sink)]),
    )
    capacity = np.concatenate([units_q, np.full(len(law.users), 2 * FLOW_UNITS - 1), units_p]).astype(np.int32)
    graph = scipy.sparse.csr_matrix((capacity, ends), shape=(n + k + 2, n + k + 2))
    residual = graph - maximum_flow(graph, source, sink).flow
    residual.eliminate_zeros()
    reached = np.zeros(n + k + 2, dtype=bool)
    reached[breadth_first_order(residual, source, return_predecessors=False)] = True
    worst = np.flatnonzero(~reached[:n] & (p > 0))
    met = np.zeros(k, dtype=bool)
    met[law.of[np.isin(law.users, worst)]] = True
    importance, presence = float(p[worst].sum()), float(law.q[met].sum())
    missing = max(0.0, importance - presence)
    if missing <= FEASIBLE:
        return Feasibility(True, 1.0, np.zeros(0, dtype=int), 0.0, 0.0)
    return Feasibility(False, 1.0 - missing, worst, importance, presence)


def user_index(present: Any, users: int) -> np.ndarray:
    """Indices `[present]` of users given as indices, or as a mask of all `users` booleans.

    Raises `TransportError` on a mask of another length, fractions, and users that do not exist.
    """
    if hasattr(present, "detach"):
        present = present.detach().cpu().numpy()
    array = np.asarray(present if isinstance(present, np.ndarray) else list(present)).ravel()
    if array.dtype == bool:
        if len(array) != users:
            raise TransportError(f"a mask of {len(array)} users, and there are {users}; give all, or list indices")
        return np.flatnonzero(array)
    if len(array) == 0:
        return np.zeros(0, dtype=np.int64)
    if array.dtype.kind not in "iuf" or not (np.isfinite(array) & (array == np.floor(array))).all():
        raise TransportError(f"users {array[:3].tolist()} are not whole numbers; name users by index, or by a mask")
    if array.min() < 0 or array.max() >= users:
        worst = int(array.min() if array.min() < 0 else array.max())
        raise TransportError(f"user {worst} is unknown; users are 0 to {users - 1}")
    return array.astype(np.int64)


def probabilities(masses: Any, size: int | None, name: str) -> np.ndarray:
    """Probabilities in float64 that sum to one exactly; `TransportError` when they miss it by over a millionth."""
    if size is None:
        size = np.shape(masses)[0] if np.ndim(masses) == 1 else -1
    array = as_masses(masses, size, name)
    total = float(array.sum())
    if abs(total - 1) > MASS_TOLERANCE:
        raise TransportError(f"masses {name} sum to {total:.9g}; divide them by their sum so that they sum to one")
    return array / total
