"""Entropic transport in torch: batched, differentiable, with an exactly feasible plan and its certificate.

Duals live in the log domain. Between two log-domain steps the iteration runs on the stabilised kernel
`K = exp((f + g - C) / eps)` by matrix-vector products, which are 20 times cheaper than logarithms of sums, and the
scalings are absorbed into the duals before they leave the range of floating point (Schmitzer 2019).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from featalign.errors import InfeasibleError, NotFinite, TransportError
from featalign.transport.checks import LARGEST_MASS, as_cost, positive

log = logging.getLogger(__name__)

SMALLEST_EPS = 1e-7  # of the cost's range; below it float64 duals have too few digits left for a plan
RANGE = 60.0  # natural logarithm of the scalings at which they are absorbed
FIRST_EPS = 0.02  # of the cost's range; where eps-halving starts (Chen et al. 2023)
COARSE = 1e-2  # relative marginal error at which a stage of eps-halving ends


@dataclass(frozen=True)
class Entropic:
    """Result of `sinkhorn`, batched as its input.

    Attributes:
        plan: `[..., n, m]`; of the stated marginals when `rounded`, else as the iteration left it.
        f, g: duals `[..., n]`, `[..., m]`, in units of the cost; minus infinity where there is no mass.
        eps: `[...]`, absolute.
        primal, dual: `[...]`, values of the regularised problem `<C, T> + eps sum T (log T - 1)` and of its dual,
            which agree at the optimum.
        iterations: over all stages.
        errors: relative marginal error (L1, over the mass) at every check, worst of the batch, and the iterations
            `at` which it was taken (final stage).
        converged: whether the tolerance was met.
    """

    plan: torch.Tensor
    f: torch.Tensor
    g: torch.Tensor
    eps: torch.Tensor
    primal: torch.Tensor
    dual: torch.Tensor
    iterations: int
    errors: list[float]
    at: list[int]
    converged: bool


def sinkhorn(
    cost: torch.Tensor,
    a: torch.Tensor | None = None,
    b: torch.Tensor | None = None,
    eps: float = 0.01,
    tolerance: float = 1e-6,
    max_iterations: int = 20_000,
    halving: bool = True,
    rounded: bool = True,
    check_every: int = 10,
    mask: torch.Tensor | None = None,
) -> Entropic:
    """Solve `min <C, T> + eps sum T (log T - 1)` for a batch of costs `[..., n, m]` on their device, in float64.

    Sinkhorn's iteration (Cuturi 2013) in the log domain, stabilised (Schmitzer 2019, algorithm 2).
    `a [..., n]` and `b [..., m]` are uniform when None; zeros are allowed (pad layers of unequal widths with them).
    `eps` is a share of the range `max C - min C` of each cost; with `halving` it is approached by halves from
    `FIRST_EPS`. The iteration stops when the marginal error relative to the mass is at most `tolerance`.
    The plan is differentiable in `cost`, `a` and `b` when any requires a gradient (implicit function theorem, eps held
    fixed); it is then not rounded. Pairs off `mask [..., n, m]` carry nothing and their cost does not count; rounding
    does not know the mask, so a masked plan is never rounded.

    Raises `NotFinite`, `TransportError` (masses; eps below `SMALLEST_EPS`), `BadOption`.
    """
    c = cost.double()
    if mask is not None:
        mask = mask.to(c.device).expand(c.shape)
        c = torch.where(mask, c, torch.zeros_like(c))
    _check(c, eps, tolerance)
    n, m = c.shape[-2:]
    batch = c.shape[:-2]
    a = c.new_full((*batch, n), 1.0 / n) if a is None else a.to(c).expand(*batch, n)
    b = c.new_full((*batch, m), 1.0 / m) if b is None else b.to(c).expand(*batch, m)
    _check_masses(a, b)
    spread = _spread(c, mask)
    if mask is not None:
        _check_mask(mask, a, b)
        c = torch.where(mask, c, torch.full_like(c, torch.inf))
    flat = (c.reshape(-1, n, m), a.reshape(-1, n), b.reshape(-1, m))
    needs_gradient = torch.is_grad_enabled() and any(part.requires_grad for part in flat)
    with torch.no_grad():
        scale = torch.where(spread > 0, spread, torch.ones_like(spread))
        state = _State(*(part.detach() for part in flat))
        state.anneal(float(eps), scale, tolerance, max_iterations, halving, check_every)
    target = eps * scale
    if needs_gradient:
        plan = _Implicit.apply(*flat, state.f, state.g, target)
    else:
        plan = state.plan(target)
        plan = round_to_marginals(plan, flat[1], flat[2]) if rounded and mask is None else plan
    with torch.no_grad():
        primal, dual = _values(state, plan, target)
    tensors = (part.reshape((*batch, *part.shape[1:])) for part in (plan, state.f, state.g, target, primal, dual))
    plan, f, g, target, primal, dual = tensors
    done = state.errors[-1] <= tolerance
    return Entropic(plan, f, g, target, primal, dual, state.count, state.errors, state.at, done)


def _values(state: _State, plan: torch.Tensor, eps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Primal and dual value of the regularised problem (Peyre and Cuturi 2019, equations 4.2 and 4.30), `[batch]`."""
    known = torch.where(state.cost.isinf(), 0.0, state.cost)
    primal = ((known + eps[:, None, None] * (plan.clamp_min(1e-300).log() - 1)) * plan).sum((1, 2))
    dual = _dot(state.f, state.a) + _dot(state.g, state.b) - eps * state.plan(eps).sum((1, 2))
    return primal, dual


class _State:
    """Duals of a batch and the iteration that improves them."""

    def __init__(self, cost: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
        self.cost, self.a, self.b = cost, a, b
        self.log_a, self.log_b = a.log(), b.log()
        self.f, self.g = torch.zeros_like(a), torch.where(b > 0, 0.0, -torch.inf)
        self.count, self.errors, self.at = 0, [np.inf], [0]

    def plan(self, eps: torch.Tensor) -> torch.Tensor:
        """`exp((f + g - C) / eps)`."""
        exponent = self.f[:, :, None] + self.g[:, None, :]
        return exponent.sub_(self.cost).div_(eps[:, None, None]).exp_()

    def anneal(
        self, eps: float, scale: torch.Tensor, tolerance: float, max_iterations: int, halving: bool, check_every: int
    ) -> None:
        """Run at `eps scale`, with `halving` after coarse runs at twice that, four times that, ..."""
        stages = [eps]
        while halving and stages[0] * 2 <= FIRST_EPS:
            stages.insert(0, stages[0] * 2)
        for stage in stages[:-1]:
            self.run(stage * scale, max(COARSE, tolerance), max_iterations, check_every)
        self.run(eps * scale, tolerance, max_iterations, check_every)
        if self.errors[-1] > tolerance:
            log.warning("sinkhorn stopped at relative marginal error %.2e, iteration %d", self.errors[-1], self.count)

    def log_step(self, eps: torch.Tensor) -> None:
        """One exact update of both duals in the log domain."""
        e = eps[:, None]
        f = e * (self.log_a - torch.logsumexp((self.g[:, None, :] - self.cost) / e[:, :, None], dim=2))
        self.f = torch.where(self.a > 0, f, -torch.inf)
        g = e * (self.log_b - torch.logsumexp((self.f[:, :, None] - self.cost) / e[:, :, None], dim=1))
        self.g = torch.where(self.b > 0, g, -torch.inf)

    def run(self, eps: torch.Tensor, tolerance: float, max_iterations: int, check_every: int) -> None:
        """Iterate at one eps until the relative marginal error is at most `tolerance`."""
        self.errors, self.at = [], []
        limit, mass = self.count + max_iterations, self.a.sum(1)
        while True:
            self.log_step(eps)
            self.count += 1
            kernel = self.plan(eps)
            row_sums = kernel.sum(2)
            self._record((row_sums - self.a).abs().sum(1), mass)
            if self.errors[-1] <= tolerance or self.count >= limit:
                return
            if bool(((row_sums < 1e-250) & (self.a > 0)).any()):
                continue  # the kernel underflows still: stay in the log domain
            self._scale(eps, kernel, tolerance, limit, check_every)
            if self.errors[-1] <= tolerance or self.count >= limit:
                return

    def _scale(self, eps: torch.Tensor, kernel: torch.Tensor, tolerance: float, limit: int, check_every: int) -> None:
        """Matrix-vector iterations on a fixed kernel, until done or until the scalings must be absorbed."""
        v, turned, mass = torch.ones_like(self.b), kernel.transpose(1, 2), self.a.sum(1)
        u = torch.ones_like(self.a)
        has_a, has_b = self.a > 0, self.b > 0
        while self.count < limit:
            for _ in range(min(check_every, limit - self.count)):
                row_sums = torch.bmm(kernel, v[:, :, None])[:, :, 0]
                new_u = torch.where(has_a, self.a / row_sums, 0.0)
                column_sums = torch.bmm(turned, new_u[:, :, None])[:, :, 0]
                new_v = torch.where(has_b, self.b / column_sums, 0.0)
                error, u, v = (u * row_sums - self.a).abs().sum(1), new_u, new_v
                self.count += 1
            logs = torch.cat([u[has_a].log(), v[has_b].log()])
            if not bool(torch.isfinite(logs).all()):
                return  # overflow between two checks: the duals from before stand, a log-domain step follows
            self._record(error, mass)  # of the scalings before the last update, an upper estimate
            if self.errors[-1] <= tolerance or float(logs.abs().max()) > RANGE:
                break
        self.f = torch.where(has_a, self.f + eps[:, None] * u.clamp_min(1e-300).log(), self.f)
        self.g = torch.where(has_b, self.g + eps[:, None] * v.clamp_min(1e-300).log(), self.g)

    def _record(self, error: torch.Tensor, mass: torch.Tensor) -> None:
        self.errors.append(float((error / mass).max()))
        self.at.append(self.count)


def round_to_marginals(plan: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The plan `[..., n, m]` moved onto marginals `a`, `b` by as much as it misses them.

    Source: Altschuler, Weed and Rigollet 2017, algorithm 2.
    """
    plan = plan * _ratio(a, plan.sum(-1)).clamp_max(1)[..., :, None]
    plan = plan * _ratio(b, plan.sum(-2)).clamp_max(1)[..., None, :]
    missing_a, missing_b = (a - plan.sum(-1)).clamp_min(0), (b - plan.sum(-2)).clamp_min(0)
    share = _ratio(missing_b, missing_b.sum(-1, keepdim=True))
    return plan + missing_a[..., :, None] * share[..., None, :]


def hilbert_rate(cost: np.ndarray, eps: float) -> float:
    """Contraction of one Sinkhorn iteration in Hilbert's metric at absolute `eps` (Peyre and Cuturi 2019, theorem 4.2).

    For a cost `[n, m]`. `((sqrt(eta) - 1) / (sqrt(eta) + 1))^2 = tanh(log(eta) / 4)^2`, where `log eta` is the largest
    cross difference `C_jk + C_il - C_ik - C_jl` over eps. Takes `O(n^2 m)`.
    """
    cost = as_cost(cost)
    largest = max(float(np.ptp(cost - row, axis=1).max()) for row in cost)
    return float(np.tanh(largest / positive(eps, "eps") / 4) ** 2)


class _Implicit(torch.autograd.Function):
    """Plan as a function of cost and masses; its derivative solves the linearised marginal constraints."""

    @staticmethod
    def forward(ctx: Any, *inputs: torch.Tensor) -> torch.Tensor:
        cost, _, _, f, g, eps = inputs
        plan = ((f[:, :, None] + g[:, None, :] - cost) / eps[:, None, None]).exp()
        ctx.save_for_backward(plan, eps)
        return plan

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        plan, eps = ctx.saved_tensors
        weighted = plan * gradients[0]
        a, b = plan.sum(2), plan.sum(1)
        inverse_a = _ratio(torch.ones_like(a), a)
        right = weighted.sum(1) - torch.einsum("bnm,bn->bm", plan, weighted.sum(2) * inverse_a)
        schur = torch.diag_embed(torch.where(b > 0, b, 1.0)) - plan.transpose(1, 2) @ (plan * inverse_a[:, :, None])
        gauge = b / b.sum(1, keepdim=True).sqrt()  # fixes the constant that f and g may exchange
        on_b = torch.linalg.solve(schur + gauge[:, :, None] * gauge[:, None, :], right)
        on_a = (weighted.sum(2) - torch.einsum("bnm,bm->bn", plan, on_b)) * inverse_a
        on_cost = (plan * (on_a[:, :, None] + on_b[:, None, :]) - weighted) / eps[:, None, None]
        return on_cost, on_a, on_b, None, None, None


def _ratio(above: torch.Tensor, below: torch.Tensor) -> torch.Tensor:
    return torch.where(below > 0, above / below.clamp_min(1e-300), torch.zeros_like(above / 1.0))


def _dot(dual: torch.Tensor, masses: torch.Tensor) -> torch.Tensor:
    return torch.where(masses > 0, dual * masses, 0.0).sum(1)


def _check(cost: torch.Tensor, eps: float, tolerance: float) -> None:
    positive(eps, "eps")
    positive(tolerance, "tolerance")
    if eps < SMALLEST_EPS:
        raise TransportError(
            f"eps={eps:g} of the cost's range is below {SMALLEST_EPS:g}: the plan underflows; use method='exact'"
        )
    if cost.ndim < 2 or 0 in cost.shape:
        raise TransportError(f"ground cost has shape {tuple(cost.shape)}; [..., sources, targets] is needed, not empty")
    if not bool(torch.isfinite(cost).all()):
        raise NotFinite(f"ground cost of shape {tuple(cost.shape)} holds NaN or infinity")


def _spread(cost: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Range of every cost of the batch `[...]`, flattened, over the allowed pairs."""
    flat = cost.detach().reshape(-1, *cost.shape[-2:])
    if mask is None:
        return flat.amax((1, 2)) - flat.amin((1, 2))
    allowed = mask.reshape(flat.shape)
    return torch.where(allowed, flat, -torch.inf).amax((1, 2)) - torch.where(allowed, flat, torch.inf).amin((1, 2))


def _check_mask(mask: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    reach_a, reach_b = (mask & (b > 0)[..., None, :]).any(-1), (mask & (a > 0)[..., :, None]).any(-2)
    if bool(((a > 0) & ~reach_a).any() or ((b > 0) & ~reach_b).any()):
        raise InfeasibleError("the mask leaves mass without an allowed partner; allow a pair or set the mass to zero")


def _check_masses(a: torch.Tensor, b: torch.Tensor) -> None:
    if not bool(torch.isfinite(a).all() and torch.isfinite(b).all()):
        raise NotFinite("masses hold NaN or infinity")
    if bool(a.sum(-1).max() > LARGEST_MASS or b.sum(-1).max() > LARGEST_MASS):
        raise NotFinite("masses overflow when summed; divide them by their largest")
    if bool((a < 0).any() or (b < 0).any()):
        raise TransportError("masses are negative")
    total_a, total_b = a.sum(-1), b.sum(-1)
    if bool((total_a <= 0).any()):
        raise TransportError("masses a are all zero: empty support; at least one unit must carry mass")
    if bool(((total_a - total_b).abs() > 1e-6 * total_a).any()):
        raise TransportError("masses a and b do not sum alike; normalise both")
