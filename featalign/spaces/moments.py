"""Streaming first and second moments in float64: what costs, maps and refits are computed from."""

from __future__ import annotations

import torch

from featalign.errors import ProbeError, SpaceMismatch


class CrossMoments:
    """Means and covariances of two activation streams seen together, and between them.

    Sums are shifted by the first batch's mean, so that covariances keep their digits when means are large.
    `covariance_ab [n, m]` is `E[(a - E a)(b - E b)^T]` (normalised by the count, not count - 1).

    `within=False` keeps only variances within each stream, which is all that costs and correlations need: the full
    covariances cost twice as much again.
    """

    def __init__(self, within: bool = True) -> None:
        self.within = within
        self.count = 0

    def update(self, a: torch.Tensor, b: torch.Tensor) -> CrossMoments:
        """Add a batch `a [samples, n]`, `b [samples, m]`; raises `SpaceMismatch` for different samples."""
        if len(a) != len(b):
            raise SpaceMismatch(f"streams of {len(a)} and {len(b)} samples; feed both clients the same batches")
        if len(a) == 0:
            return self
        a, b = a.double(), b.double()
        if self.count == 0:
            self.shift_a, self.shift_b = a.mean(0), b.mean(0)
            self.sum_a, self.sum_b = torch.zeros_like(self.shift_a), torch.zeros_like(self.shift_b)
            self.sum_aa = a.new_zeros(a.shape[1], a.shape[1]) if self.within else torch.zeros_like(self.shift_a)
            self.sum_bb = b.new_zeros(b.shape[1], b.shape[1]) if self.within else torch.zeros_like(self.shift_b)
            self.sum_ab = a.new_zeros(a.shape[1], b.shape[1])
        a, b = a - self.shift_a, b - self.shift_b
        self.sum_a += a.sum(0)
        self.sum_b += b.sum(0)
        self.sum_aa += a.T @ a if self.within else a.square().sum(0)
        self.sum_bb += b.T @ b if self.within else b.square().sum(0)
        self.sum_ab += a.T @ b
        self.count += len(a)
        return self

    def _require_samples(self) -> int:
        if self.count == 0:
            raise ProbeError("no samples were seen; the probe set is empty")
        return self.count

    @property
    def mean_a(self) -> torch.Tensor:
        """`[n]`."""
        return self.shift_a + self.sum_a / self._require_samples()

    @property
    def mean_b(self) -> torch.Tensor:
        """`[m]`."""
        return self.shift_b + self.sum_b / self._require_samples()

    @property
    def variance_a(self) -> torch.Tensor:
        """`[n]`."""
        return self._variance(self.sum_aa, self.sum_a)

    @property
    def variance_b(self) -> torch.Tensor:
        """`[m]`."""
        return self._variance(self.sum_bb, self.sum_b)

    def _variance(self, second: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
        n = self._require_samples()
        return ((second.diagonal() if self.within else second) / n - (first / n) ** 2).clamp_min(0)

    @property
    def covariance_aa(self) -> torch.Tensor:
        """`[n, n]`; raises `SpaceMismatch` where only variances were kept."""
        return self._covariance(self.sum_aa, self.sum_a)

    @property
    def covariance_bb(self) -> torch.Tensor:
        """`[m, m]`; raises `SpaceMismatch` where only variances were kept."""
        return self._covariance(self.sum_bb, self.sum_b)

    def _covariance(self, second: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
        n = self._require_samples()
        if not self.within:
            raise SpaceMismatch("only variances were kept within each stream; build CrossMoments(within=True)")
        return second / n - torch.outer(first, first) / n**2

    @property
    def covariance_ab(self) -> torch.Tensor:
        """`[n, m]`."""
        n = self._require_samples()
        return self.sum_ab / n - torch.outer(self.sum_a, self.sum_b) / n**2

    @property
    def correlation(self) -> torch.Tensor:
        """Pearson correlation `[n, m]`; zero where a unit is constant."""
        scale = torch.outer(self.variance_a, self.variance_b).sqrt()
        return torch.where(scale > 1e-20, self.covariance_ab / scale.clamp_min(1e-20), torch.zeros_like(scale))

    @property
    def squared_distances(self) -> torch.Tensor:
        """`E |a_i - b_j|^2`, `[n, m]`: the activation ground cost of OTFusion per sample."""
        second_a = self.variance_a + self.mean_a**2
        second_b = self.variance_b + self.mean_b**2
        second_ab = self.covariance_ab + torch.outer(self.mean_a, self.mean_b)
        return (second_a[:, None] + second_b[None, :] - 2 * second_ab).clamp_min(0)


class Moments:
    """Mean and variance of every unit of one stream, in float64, merged batch by batch (Chan et al. 1979)."""

    def __init__(self) -> None:
        self.count = 0

    def update(self, activations: torch.Tensor) -> Moments:
        """Add a batch `[samples, units]`."""
        if len(activations) == 0:
            return self
        batch = activations.double()
        mean, squares = batch.mean(0), (batch - batch.mean(0)).pow(2).sum(0)
        if self.count == 0:
            self.mean, self.squares = mean, squares
        else:
            delta, total = mean - self.mean, self.count + len(batch)
            self.squares = self.squares + squares + delta**2 * (self.count * len(batch) / total)
            self.mean = self.mean + delta * (len(batch) / total)
        self.count += len(batch)
        return self

    @property
    def variance(self) -> torch.Tensor:
        """`[units]`, normalised by the count."""
        if self.count == 0:
            raise ProbeError("no samples were seen; the probe set is empty")
        return self.squares / self.count
