"""Newton's method on the dual of masked entropic transport, whose gradient is what scaling brings to zero.

With `r_i` proportional to `p_i exp(-c theta_i)` (`c = (1 - relax) / relax`; `r = p` when c is 0) the dual

    D(theta) = -1/c log sum_i p_i exp(-c theta_i) - sum_S q_S log sum_(i in S) exp(theta_i)

is concave, its gradient is `r - phat` and minus its Hessian is the covariance of r times c plus the mean covariance of
the weights within subsets: a product with it costs one pass over the memberships. Steps solve by conjugate gradients,
inexactly (Dembo, Eisenstat and Steihaug 1982), and are kept only where they bring `|r - phat|_1` down or D up. Laws on
which conjugate gradients are slow, because users meet in long chains, are those whose Hessian has sparse factors.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy.sparse
from scipy.sparse.linalg import splu

from featalign.transport.presence import Law

STEPS = 100
INNER = 400  # products with the Hessian per step, before it is factored
MEETINGS = 4_000_000  # sum over subsets of the squared number of users, up to which the Hessian is factored
HALVINGS = 12
FLAT = 1e-13  # curvature relative to the importance that rounding explains: users who are always alone have none
LONGEST = 30.0  # change of a theta in one step


def ascend(p: np.ndarray, law: Law, theta: np.ndarray, decay: float, tolerance: float) -> tuple[np.ndarray, int]:
    """Theta `[users]` near the maximum of the dual, from `theta`, and the number of steps taken.

    Users of no importance (theta minus infinity) or who never show up stay where they are. Ends when `|r - phat|_1`
    is at most `tolerance` or no step helps any more; scaling goes on from there.
    """
    dual = _Dual(p, law, decay)
    value, gradient, weights, r = dual.at(theta)
    for step in range(STEPS):
        error = np.abs(gradient).sum()
        if error <= tolerance:
            return theta, step
        direction = dual.direction(weights, r, gradient, min(0.1, error**0.5))
        direction *= min(1.0, LONGEST / max(float(np.abs(direction).max()), 1e-300))
        slope, length = float(direction @ gradient), 1.0
        for _ in range(HALVINGS):
            moved = theta + length * direction
            now = dual.at(moved)
            # far from the maximum the value decides, close to it its digits do not suffice and the gradient does
            if now[0] >= value + 1e-4 * length * slope or np.abs(now[1]).sum() < 0.9 * error:
                break
            length *= 0.5
        else:
            return theta, step
        theta, (value, gradient, weights, r) = moved, now
        theta = np.where(dual.free, theta - theta[dual.free].max(), theta)
    return theta, STEPS


class _Dual:
    """Value, gradient and curvature of the dual over the users that are free to move."""

    def __init__(self, p: np.ndarray, law: Law, decay: float) -> None:
        self.law, self.decay, self.size = law, decay, len(p)
        self.free = (p > 0) & (np.bincount(law.users, law.q[law.of], len(p)) > 0)
        self.log_p = np.where(self.free, np.log(np.where(p > 0, p, 1.0)), -np.inf)
        self.p = np.where(self.free, p, 0.0)
        self.meetings = int((np.bincount(law.of) ** 2).sum())

    def at(self, theta: np.ndarray) -> tuple[float, np.ndarray, np.ndarray, np.ndarray]:
        """`(D, gradient [users], weights [memberships], r [users])`."""
        weights, logs = self.law.softmax_and_logs(theta)
        if self.decay == 0:
            r, value = self.p, float(self.p @ np.where(self.free, theta, 0.0))
        else:
            tilted = self.log_p - self.decay * np.where(self.free, theta, 0.0)
            top = tilted.max()
            r = np.exp(tilted - top)
            value = -float(top + np.log(r.sum())) / self.decay
            r = r / r.sum()
        gradient = np.where(self.free, r - self.law.delivered(weights, self.size), 0.0)
        return value - float(self.law.q @ logs), gradient, weights, r

    def hessian(self, weights: np.ndarray, r: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        """The product of minus the Hessian with a vector `[users]`."""
        law, phat = self.law, self.law.delivered(weights, self.size)

        def product(x: np.ndarray) -> np.ndarray:
            means = np.add.reduceat(weights * x[law.users], law.starts)
            inner = phat * x - np.bincount(law.users, weights * (law.q * means)[law.of], self.size)
            return np.where(self.free, inner + self.decay * r * (x - r @ x), 0.0)

        return product

    def direction(self, weights: np.ndarray, r: np.ndarray, gradient: np.ndarray, share: float) -> np.ndarray:
        """Newton's direction `[users]`, up to the constant that changes nothing."""
        diagonal = self.diagonal(weights, r)
        found, converged = _conjugate_gradients(self.hessian(weights, r), diagonal, gradient, share)
        if converged or self.meetings > MEETINGS:
            return found
        law = self.law
        shares = scipy.sparse.csr_array((weights, (law.users, law.of)), shape=(self.size, len(law.q)))
        # the rank-one part of the curvature of r only moves the solution by a constant
        own = law.delivered(weights, self.size) + self.decay * r + FLAT * diagonal + ~self.free
        matrix = scipy.sparse.diags_array(own) - shares @ scipy.sparse.diags_array(law.q) @ shares.T
        factors = splu(matrix.tocsc(), permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0)
        return np.where(self.free, factors.solve(gradient), 0.0)

    def diagonal(self, weights: np.ndarray, r: np.ndarray) -> np.ndarray:
        """The diagonal of minus the Hessian `[users]`, at least the rounding of its parts."""
        law = self.law
        inner = np.bincount(law.users, law.q[law.of] * weights * (1 - weights), self.size)
        return np.maximum(inner + self.decay * r * (1 - r), FLAT * np.maximum(self.p, 1e-290))


def _conjugate_gradients(
    product: Callable[[np.ndarray], np.ndarray], diagonal: np.ndarray, right: np.ndarray, share: float
) -> tuple[np.ndarray, bool]:
    """Inexact solution of `H x = right`, to `share` of the residual, by the diagonal; and whether it got there."""
    x, residual = np.zeros_like(right), right.copy()
    z = residual / diagonal
    along, rho = z.copy(), float(residual @ z)
    limit = share**2 * rho
    for _ in range(INNER):
        pushed = product(along)
        curvature = float(along @ pushed)
        if not curvature > FLAT * float(along @ (diagonal * along)):
            return (x if x.any() else right / diagonal), True  # the dual is flat to rounding along here
        alpha = rho / curvature
        x += alpha * along
        residual -= alpha * pushed
        z = residual / diagonal
        before, rho = rho, float(residual @ z)
        if rho <= limit:
            return x, True
        along = z + (rho / before) * along
    return x, False
