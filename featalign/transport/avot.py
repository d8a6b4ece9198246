"""FedAVOT: masked transport between who shows up and who counts (Rahimi and Kalogerias 2025).

Users have importance `p`, subsets S of users show up with law `q`. A coupling `G >= 0` supported on membership with
`G 1 = p` and `1^T G = q` gives aggregation weights `w_{i|S} = G[i, S] / q_S` that are convex and unbiased for the
p-weighted objective. The entropic coupling needs one number per user: `w_{.|S} = softmax(theta on S)`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse
from scipy.sparse.csgraph import breadth_first_order, maximum_flow

from featalign.errors import BadOption, InfeasibleError, TransportError
from featalign.transport.checks import MASS_TOLERANCE, as_masses

FLOW_UNITS = 2**30  # one unit of mass in the integers of the flow solver
FEASIBLE = 1e-8  # mass that may stay undelivered by the rounding of the flow


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


class _Law:
    """Subsets and their probabilities as a membership list: `users [e]` of subset `of [e]`, in order of subsets."""

    def __init__(self, subsets: Iterable[Sequence[int] | np.ndarray], q: Any, users: int) -> None:
        lists = [np.unique(np.asarray(list(subset), dtype=np.int64)) for subset in subsets]
        if not lists:
            raise TransportError("no subsets were given: empty support; list who can show up together")
        empty = [k for k, members in enumerate(lists) if len(members) == 0]
        if empty:
            raise TransportError(
                f"subset {empty[0]} is empty: empty support; rounds in which nobody shows up do not count"
            )
        self.users = np.concatenate(lists)
        if self.users.min() < 0 or self.users.max() >= users:
            raise TransportError(f"subsets name user {int(self.users.max())}; users are 0 to {users - 1}")
        sizes = np.array([len(members) for members in lists])
        self.starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        self.of = np.repeat(np.arange(len(lists)), sizes)
        self.q = _law(q, len(lists), "q")

    def softmax(self, theta: np.ndarray) -> np.ndarray:
        """`w_{i|S}` for every membership `[e]`."""
        logits = theta[self.users]
        top = np.maximum.reduceat(logits, self.starts)
        if np.isneginf(top).any():
            raise InfeasibleError(
                f"nobody of subset {int(np.argmin(top))} carries importance; its rounds deliver to no one: drop the "
                "subset, or give its users some importance"
            )
        weights = np.exp(logits - top[self.of])
        return weights / np.add.reduceat(weights, self.starts)[self.of]

    def delivered(self, weights: np.ndarray, users: int) -> np.ndarray:
        """`phat_i = sum_S q_S w_{i|S}`, `[users]`."""
        return np.bincount(self.users, weights=weights * self.q[self.of], minlength=users)


def feasibility(p: Any, subsets: Iterable[Sequence[int] | np.ndarray], q: Any) -> Feasibility:
    """Hall's condition `p(A) <= q{S meets A}` for all A, by max flow and its minimum cut.

    Raises `TransportError` on masses that are negative or do not sum to one, and on empty subsets.
    """
    p = _law(p, None, "p")
    return _feasibility(p, _Law(subsets, q, len(p)))


def _feasibility(p: np.ndarray, law: _Law) -> Feasibility:
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


class AvotWeights:
    """Aggregation weights for the users that are present, from one number per user.

    >>> weights = AvotWeights(p).fit(subsets, q)
    >>> weights.weights([3, 17])                   # convex, O(number present)
    >>> weights.report()["feasible"]

    `p [users]` is the importance and must sum to one. `relax` in [0, 1] is the exponent of the scaling step
    (`theta <- relax (theta + log p - log phat)`, as in unbalanced transport): 1 is unbiased when the law is
    feasible, 0 is the uniform mean, values between trade bias for variance where it is not.

    Raises `TransportError` on masses that are negative or do not sum, `BadOption` on relax outside [0, 1].
    """

    def __init__(self, p: Any, relax: float = 1.0) -> None:
        if not 0 <= relax <= 1:
            raise BadOption(f"relax={relax!r}: give a number from 0 (uniform mean) to 1 (unbiased)")
        self.p, self.relax = _law(p, None, "p"), float(relax)
        self._scaled = np.where(self.p > 0, 0.0, -np.inf)  # theta = decay * scaled; absent users decay untouched
        self._decay, self.rounds, self.iterations = 1.0, 0, 0
        self._users = int((self.p > 0).sum())
        self._law: _Law | None = None
        self._phat: np.ndarray | None = None

    @property
    def theta(self) -> np.ndarray:
        """`[users]`, up to a constant; minus infinity for users without importance."""
        return self._decay * self._scaled

    def fit(
        self,
        subsets: Iterable[Sequence[int] | np.ndarray],
        q: Any = None,
        max_iterations: int = 100_000,
        tolerance: float = 1e-12,
        strict: bool = True,
    ) -> AvotWeights:
        """Solve for a law of presence: `subsets` (lists of users) and their probabilities `q` (equal when None).

        Iterates `theta += log p - log phat` until `|p - phat|_1 <= tolerance` or nothing moves.

        Raises `InfeasibleError` with the worst set when the law cannot deliver p and `relax` is 1; with
        `strict=False` the closest deliverable importance is fitted instead.
        """
        law = _Law(subsets, q, len(self.p))
        self._law = law
        if strict and self.relax == 1:
            verdict = _feasibility(self.p, law)
            if not verdict.feasible:
                raise InfeasibleError(f"{verdict}; lower relax below 1, pass strict=False, or change the law")
        live = self.p > 0
        theta, log_p = np.where(live, 0.0, -np.inf), np.log(np.where(live, self.p, 1.0))
        phat = law.delivered(law.softmax(theta), len(self.p))
        for iteration in range(1, max_iterations + 1):
            self.iterations = iteration
            seen = live & (phat > 0)  # users that never show up keep theta 0: they get no weight anyway
            step = np.where(seen, log_p - np.log(np.where(seen, phat, 1.0)), 0.0)
            theta = np.where(seen, self.relax * (theta + step), theta)
            theta[live] -= theta[live & seen].max()
            before, phat = phat, law.delivered(law.softmax(theta), len(self.p))
            if np.abs(phat - self.p).sum() <= tolerance or np.abs(phat - before).sum() <= 1e-3 * tolerance:
                break
        self._scaled, self._decay, self._phat = theta, 1.0, phat
        return self

    def update(self, present: Sequence[int] | np.ndarray) -> AvotWeights:
        """Learn from one round by a Robbins-Monro step on `1 - w_i / p_i`, `O(number present)`.

        The step is `1 / N (1 + t / N)^(-2/3)` for N users and t rounds. Better than a fit to the observed rounds as
        long as most subsets were not seen often.
        """
        index = self._index(present)
        weights = self._softmax(index)
        step = (1 + self.rounds / self._users) ** (-2 / 3) / self._users
        self._decay *= 1 - (1 - self.relax) * step
        live = self.p[index] > 0
        moved, share = index[live], weights[live] / self.p[index[live]]
        self._scaled[moved] -= self.relax * np.minimum(step * share, 1.0) / self._decay
        self.rounds += 1
        if self._decay < 1e-100:
            self._scaled, self._decay = self.theta, 1.0
        return self

    def weights(self, present: Sequence[int] | np.ndarray) -> np.ndarray:
        """Convex weights `[present]` for the users of this round, in their order, `O(number present)`.

        Raises `TransportError` when nobody is present or a user is named twice, `InfeasibleError` when nobody present
        carries importance.
        """
        return self._softmax(self._index(present))

    def coupling(self) -> scipy.sparse.csr_array:
        """`G [users, subsets]` of the fitted law."""
        law = self._fitted()
        values = law.softmax(self.theta) * law.q[law.of]
        return scipy.sparse.csr_array((values, (law.users, law.of)), shape=(len(self.p), len(law.q)))

    def report(self) -> dict[str, Any]:
        """Feasibility of the fitted law, the worst set, what is delivered and how far it is from p (L1)."""
        law = self._fitted()
        verdict = _feasibility(self.p, law)
        phat = law.delivered(law.softmax(self.theta), len(self.p))
        return {
            "feasible": verdict.feasible,
            "deliverable_mass": verdict.deliverable,
            "worst_set": verdict.worst.tolist(),
            "worst_set_importance": verdict.importance,
            "worst_set_presence": verdict.presence,
            "smallest_error": 2 * (1 - verdict.deliverable),
            "error": float(np.abs(self.p - phat).sum()),
            "phat": phat,
            "relax": self.relax,
            "iterations": self.iterations,
        }

    def _fitted(self) -> _Law:
        if self._law is None:
            raise TransportError("no law of presence yet: call fit(subsets, q) first")
        return self._law

    def _index(self, present: Sequence[int] | np.ndarray) -> np.ndarray:
        index = np.asarray(present, dtype=np.int64).ravel()
        if len(index) == 0:
            raise TransportError("nobody is present: empty support; skip the round")
        if index.min() < 0 or index.max() >= len(self.p):
            raise TransportError(f"user {int(index.max())} is unknown; users are 0 to {len(self.p) - 1}")
        if len(set(index.tolist())) < len(index):
            raise TransportError("a user is named twice in one round")
        return index

    def _softmax(self, index: np.ndarray) -> np.ndarray:
        theta = self._decay * self._scaled[index]
        top = theta.max()
        if np.isneginf(top):
            raise InfeasibleError("nobody who is present carries importance; skip the round or give them some")
        weights = np.exp(theta - top)
        return weights / weights.sum()


def _law(masses: Any, size: int | None, name: str) -> np.ndarray:
    """Probabilities in float64 that sum to one exactly; `TransportError` when they miss it by over a millionth."""
    if size is None:
        size = np.shape(masses)[0] if np.ndim(masses) == 1 else -1
    array = as_masses(masses, size, name)
    total = float(array.sum())
    if abs(total - 1) > MASS_TOLERANCE:
        raise TransportError(f"masses {name} sum to {total:.9g}; divide them by their sum so that they sum to one")
    return array / total
