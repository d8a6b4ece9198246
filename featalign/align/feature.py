"""Feature-basis alignment: match dictionary latents by partial transport, then decode the plan to a space map.

The cost between two latents is one minus the correlation of their codes over the shared probe. Matching is partial: a
latent of one client only is real, and stays unmatched when its best partner is no better than a null finds.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from featalign.align.linear import rotation
from featalign.align.maps import SpaceMap
from featalign.dictionaries.basis import Basis
from featalign.errors import ProbeError
from featalign.spaces.graph import Symmetry
from featalign.spaces.moments import CrossMoments
from featalign.transport import Plan, null_threshold, solve

TIE = 1e-9  # in favour of the place a unit has, among equal affinities


@dataclass(frozen=True)
class FeatureMatch:
    """Latents of two bases matched on a probe.

    Attributes:
        plan: partial plan between the latents, `[F_a, F_b]`.
        correlation: of their codes, `[F_a, F_b]` float64.
        null_best: best correlation of each latent of `a` after the samples of `b` were rolled, `[F_a]`.
        threshold: cost above which a pair is no better than the null.
        gains: least-squares slope of `b`'s code on `a`'s, per matched pair `[p]`.
        energy: variance of the codes times the squared norm of their atoms, of `a` `[F_a]` and of `b` `[F_b]`.
        moments: the moments of the codes everything above was computed from.
    """

    plan: Plan
    correlation: np.ndarray
    null_best: np.ndarray
    threshold: float
    gains: np.ndarray
    energy: tuple[np.ndarray, np.ndarray]
    moments: CrossMoments

    @property
    def pairs(self) -> np.ndarray:
        """`[p, 2]` matched latents."""
        return self.plan.pairs

    @property
    def scores(self) -> np.ndarray:
        """Correlation of each matched pair, `[p]`."""
        return self.correlation[self.pairs[:, 0], self.pairs[:, 1]]

    @property
    def matched_energy(self) -> tuple[float, float]:
        """Share of each client's code energy that lies in matched latents."""
        pairs, (a, b) = self.pairs, self.energy
        return (
            float(a[pairs[:, 0]].sum() / max(a.sum(), 1e-300)),
            float(b[pairs[:, 1]].sum() / max(b.sum(), 1e-300)),
        )

    def to_dict(self) -> dict[str, Any]:
        """Certificate, threshold and summary statistics as plain numbers."""
        alive = (int((self.energy[0] > 0).sum()), int((self.energy[1] > 0).sum()))
        return {
            **self.plan.to_dict(),
            "threshold": self.threshold,
            "alive": list(alive),
            "mean_correlation": float(self.scores.mean()) if len(self.scores) else 0.0,
            "null_mean_best": float(self.null_best.mean()),
            "matched_energy": list(self.matched_energy),
        }


def match_features(
    a: Basis,
    b: Basis,
    activations: Iterable[tuple[torch.Tensor, torch.Tensor]],
    quantile: float = 0.95,
    minimum: float = 0.0,
) -> FeatureMatch:
    """Match the latents of two bases over batches of activations of the same inputs (`[samples, n]`, `[samples, m]`).

    The threshold is the `quantile` of the best cost per latent when the samples of `b` are rolled by half a batch (a
    null without shared content), and never a correlation below `minimum`: with many samples the null alone lets pairs
    of spare latents through that share a little of one feature. Latents that never fire carry no mass. Raises
    `ProbeError` when nothing fires.
    """
    moments, null = CrossMoments(within=False), CrossMoments(within=False)
    with torch.no_grad():
        for batch_a, batch_b in activations:
            codes_a, codes_b = a.encode(batch_a), b.encode(batch_b)
            moments.update(codes_a, codes_b)
            null.update(codes_a, codes_b.roll(max(1, len(codes_b) // 2), dims=0))
    correlation = moments.correlation.numpy()
    variance_a = moments.variance_a.numpy()
    variance_b = moments.variance_b.numpy()
    alive_a, alive_b = np.flatnonzero(variance_a > 1e-12), np.flatnonzero(variance_b > 1e-12)
    if len(alive_a) == 0 or len(alive_b) == 0:
        raise ProbeError(f"no latent of the '{a.name}' or '{b.name}' basis fires on the probe; give a larger probe set")
    null_best = null.correlation.numpy()[np.ix_(alive_a, alive_b)].max(axis=1)
    # the q-quantile of best correlations is what chance reaches in 1 - q of the latents: keep what beats it
    threshold = null_threshold(1 - null.correlation.numpy()[np.ix_(alive_a, alive_b)], quantile=1 - quantile)
    threshold = min(threshold, 1 - minimum)
    alive_plan = solve(1 - correlation[np.ix_(alive_a, alive_b)], method="partial", threshold=threshold)
    plan = _embedded(alive_plan, alive_a, alive_b, correlation.shape)
    pairs = plan.pairs
    covariance = moments.covariance_ab.numpy()
    gains = covariance[pairs[:, 0], pairs[:, 1]] / variance_a[pairs[:, 0]]
    energy = (
        variance_a * a.atoms.detach().double().pow(2).sum(1).numpy(),
        variance_b * b.atoms.detach().double().pow(2).sum(1).numpy(),
    )
    return FeatureMatch(plan, correlation, null_best, threshold, gains, energy, moments)


def _embedded(plan: Plan, rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int]) -> Plan:
    """The plan between alive latents, written on all of them (dead ones carry no mass)."""
    import scipy.sparse

    inner = scipy.sparse.coo_array(plan.coupling)
    coupling = scipy.sparse.csr_array((inner.data, (rows[inner.row], columns[inner.col])), shape=shape)
    a, b = np.zeros(shape[0]), np.zeros(shape[1])
    a[rows], b[columns] = plan.a, plan.b
    return Plan(coupling, a, b, plan.value, plan.lower_bound, plan.method, plan.reason, plan.iterations)


def unit_affinity(match: FeatureMatch, a: Basis, b: Basis) -> np.ndarray:
    """`[n, m]`: how much matched content unit u of A and unit v of B share, `sum_p w_p |D_a[p, u]| |D_b[p, v]|`.

    Weights are squared correlation times the geometric mean of the codes' variances; signs must agree (units write
    features through non-negative codes, and a ReLU unit cannot be negated).
    """
    pairs = match.pairs
    atoms_a = a.atoms.detach().double().numpy()[pairs[:, 0]]
    atoms_b = b.atoms.detach().double().numpy()[pairs[:, 1]]
    variance_a = match.moments.variance_a.numpy()[pairs[:, 0]]
    variance_b = match.moments.variance_b.numpy()[pairs[:, 1]]
    weight = match.scores**2 * np.sqrt(np.clip(variance_a * variance_b, 0, None))
    shared = (atoms_a * weight[:, None]).T @ atoms_b
    scale = np.sqrt(np.outer((atoms_a**2 * weight[:, None]).sum(0), (atoms_b**2 * weight[:, None]).sum(0)))
    return shared / np.maximum(scale, 1e-12)


def project(match: FeatureMatch, a: Basis, b: Basis, symmetry: Symmetry) -> SpaceMap:
    """Project a feature plan onto what the space allows.

    Elementwise nonlinearity: the assignment of units that shares most matched features (ties go by the units' place,
    so that units without features stay). Linear space: the polar factor of the energy-weighted `D_b^T T^T D_a`, an
    orthogonal (or, for unequal widths, semi-orthogonal) map.
    """
    if symmetry in {Symmetry.ORTHOGONAL, Symmetry.LINEAR}:
        pairs = match.pairs
        weight = match.scores**2 * np.sqrt(match.energy[0][pairs[:, 0]] * match.energy[1][pairs[:, 1]])
        unit_a = torch.nn.functional.normalize(a.atoms.detach().double()[pairs[:, 0]], dim=1)
        unit_b = torch.nn.functional.normalize(b.atoms.detach().double()[pairs[:, 1]], dim=1)
        return rotation(unit_b.T @ (torch.from_numpy(weight)[:, None] * unit_a))
    affinity = unit_affinity(match, a, b)
    return SpaceMap.from_plan(solve(1 - affinity - TIE * np.eye(*affinity.shape), method="exact"))


def fold(match: FeatureMatch, a: Basis, b: Basis) -> SpaceMap:
    """The naive contrast: a linear map through matched atoms, folded into the weights of both neighbours.

    `a_B ~ sum_p g_p d^B_p (D_a^+ a_A)_p`, with the reverse map for the readers; what the matched atoms do not span
    stays where it is (equal widths). It ignores the nonlinearity between the map and its inverse, which is what it is
    shown for.
    """
    pairs = match.pairs
    gains = torch.from_numpy(match.gains).clamp_min(1e-6)
    atoms_a, atoms_b = a.atoms.detach().double()[pairs[:, 0]], b.atoms.detach().double()[pairs[:, 1]]
    inverse_a, inverse_b = torch.linalg.pinv(atoms_a.T, rtol=1e-3), torch.linalg.pinv(atoms_b.T, rtol=1e-3)
    out = atoms_b.T @ (gains[:, None] * inverse_a)
    into = atoms_a.T @ ((1 / gains)[:, None] * inverse_b)
    if len(out) == len(into):
        rest_a = torch.eye(len(into), dtype=out.dtype) - atoms_a.T @ inverse_a
        rest_b = torch.eye(len(out), dtype=out.dtype) - atoms_b.T @ inverse_b
        out, into = out + rest_b @ rest_a, into + rest_a @ rest_b
    return SpaceMap(out, into, Symmetry.LINEAR)


@dataclass(frozen=True)
class ReExpression:
    """A client's matched latents written as pre-activations of the reference.

    `t(x) = mean_b + sum_p g_p (z_a,p(x) - mean) v_p`, with `v_p` the least-squares atoms of the reference's
    pre-activations on its own matched codes; `complement(x)` is what those atoms leave of the reference itself.
    """

    basis_a: Basis
    basis_b: Basis
    pairs: np.ndarray
    gains: torch.Tensor  # [p]
    atoms: torch.Tensor  # [p, m]
    mean_codes_a: torch.Tensor  # [p]
    mean_codes_b: torch.Tensor  # [p]
    mean_pre: torch.Tensor  # [m]

    def __call__(self, post_a: torch.Tensor, post_b: torch.Tensor, pre_b: torch.Tensor) -> torch.Tensor:
        """Target pre-activations `[samples, m]` from the post-activations of both and the pre-activations of b."""
        codes_a = self.basis_a.encode(post_a)[:, self.pairs[:, 0]].double() - self.mean_codes_a
        codes_b = self.basis_b.encode(post_b)[:, self.pairs[:, 1]].double() - self.mean_codes_b
        complement = pre_b.double() - self.mean_pre - codes_b @ self.atoms
        return self.mean_pre + (codes_a * self.gains) @ self.atoms + complement


def re_express(
    match: FeatureMatch, a: Basis, b: Basis, batches: Iterable[tuple[torch.Tensor, torch.Tensor]], ridge: float = 1e-3
) -> ReExpression:
    """Fit the atoms of a re-expression from batches of `(post_b [samples, m], pre_b [samples, m])`."""
    pairs = match.pairs
    moments = CrossMoments()
    with torch.no_grad():
        for post_b, pre_b in batches:
            moments.update(b.encode(post_b)[:, pairs[:, 1]], pre_b)
    gram = moments.covariance_aa
    gram = gram + ridge * gram.diagonal().mean().clamp_min(1e-12) * torch.eye(len(gram), dtype=gram.dtype)
    atoms = torch.linalg.solve(gram, moments.covariance_ab)
    return ReExpression(
        a, b, pairs, torch.from_numpy(match.gains), atoms,
        match.moments.mean_a[pairs[:, 0]], moments.mean_a, moments.mean_b,
    )  # fmt: skip
