"""FedAVOT: masked transport between who shows up and who counts (Rahimi and Kalogerias 2025).

Users have importance `p`, subsets S of users show up with law `q`. A coupling `G >= 0` supported on membership with
`G 1 = p` and `1^T G = q` gives aggregation weights `w_{i|S} = G[i, S] / q_S` that are convex and unbiased for the
p-weighted objective. The entropic coupling needs one number per user: `w_{.|S} = softmax(theta on S)`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import scipy.sparse

from featalign.errors import BadOption, InfeasibleError, TransportError
from featalign.transport.avot_newton import ascend
from featalign.transport.presence import Law, Users, probabilities, user_index, verdict


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
        self.p, self.relax = probabilities(p, None, "p"), float(relax)
        self._scaled = np.where(self.p > 0, 0.0, -np.inf)  # theta = decay * scaled; absent users decay untouched
        self._decay, self.rounds, self.iterations = 1.0, 0, 0
        self._users = int((self.p > 0).sum())
        self._law: Law | None = None
        self._phat: np.ndarray | None = None

    @property
    def theta(self) -> np.ndarray:
        """`[users]`, up to a constant; minus infinity for users without importance."""
        return self._decay * self._scaled

    def fit(
        self,
        subsets: Iterable[Users],
        q: Any = None,
        max_iterations: int = 100_000,
        tolerance: float = 1e-12,
        strict: bool = True,
    ) -> AvotWeights:
        """Solve for a law of presence: `subsets` (lists of users) and their probabilities `q` (equal when None).

        Scaling, `theta += log p - log phat` (Rahimi and Kalogerias 2025), until `|p - phat|_1 <= tolerance` or nothing
        moves, after Newton steps on the concave dual whose gradient is `p - phat` (`ascend`): the same fixed point.

        Raises `InfeasibleError` with the worst set when the law cannot deliver p and `relax` is 1; with
        `strict=False` the closest deliverable importance is fitted instead, by scaling alone.
        """
        law = Law(subsets, q, len(self.p))
        self._law = law
        feasible = self.relax < 1
        if self.relax == 1:
            found = verdict(self.p, law)
            feasible = found.feasible
            if strict and not feasible:
                raise InfeasibleError(f"{found}; lower relax below 1, pass strict=False, or change the law")
        live = self.p > 0
        theta, log_p = np.where(live, 0.0, -np.inf), np.log(np.where(live, self.p, 1.0))
        steps = 0
        if feasible and self.relax > 0:
            theta, steps = ascend(self.p, law, theta, (1 - self.relax) / self.relax, tolerance)
        phat = law.delivered(law.softmax(theta), len(self.p))
        for iteration in range(1, max_iterations + 1):
            self.iterations = steps + iteration
            seen = live & (phat > 0)  # users that never show up keep theta 0: they get no weight anyway
            step = np.where(seen, log_p - np.log(np.where(seen, phat, 1.0)), 0.0)
            theta = np.where(seen, self.relax * (theta + step), theta)
            theta[live] -= theta[live & seen].max()
            before, phat = phat, law.delivered(law.softmax(theta), len(self.p))
            if np.abs(phat - self.p).sum() <= tolerance or np.abs(phat - before).sum() <= 1e-3 * tolerance:
                break
        self._scaled, self._decay, self._phat = theta, 1.0, phat
        return self

    def update(self, present: Users) -> AvotWeights:
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

    def resume(self, theta: Any, rounds: int) -> AvotWeights:
        """Go on learning from the `theta [users]` of another `AvotWeights` after so many rounds.

        Raises `TransportError` for another number of users.
        """
        found = np.array(theta, dtype=np.float64)
        if found.shape != self.p.shape:
            raise TransportError(f"theta of shape {found.shape} for {len(self.p)} users; give one number per user")
        self._scaled, self._decay, self.rounds = np.where(self.p > 0, found, -np.inf), 1.0, int(rounds)
        return self

    def weights(self, present: Users) -> np.ndarray:
        """Convex weights `[present]` for the users of this round (indices in their order, or a mask of all users).

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
        found = verdict(self.p, law)
        phat = law.delivered(law.softmax(self.theta), len(self.p))
        return {
            "feasible": found.feasible,
            "deliverable_mass": found.deliverable,
            "worst_set": found.worst.tolist(),
            "worst_set_importance": found.importance,
            "worst_set_presence": found.presence,
            "smallest_error": 2 * (1 - found.deliverable),
            "error": float(np.abs(self.p - phat).sum()),
            "phat": phat,
            "relax": self.relax,
            "iterations": self.iterations,
        }

    def _fitted(self) -> Law:
        if self._law is None:
            raise TransportError("no law of presence yet: call fit(subsets, q) first")
        return self._law

    def _index(self, present: Users) -> np.ndarray:
        index = user_index(present, len(self.p))
        if len(index) == 0:
            raise TransportError("nobody is present: empty support; skip the round")
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
