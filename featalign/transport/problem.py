"""A transport problem as a type: cost, masses and mask, checked once; its properties decide a solver's road."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from featalign.errors import InfeasibleError, NotFinite
from featalign.transport.checks import as_cost, as_mask, as_masses, equal_totals, is_uniform, same_total
from featalign.transport.costs import DenseCost, GroundCost, MaskedCost


@dataclass(frozen=True, eq=False)
class Problem:
    """Ground cost `[n, m]` between masses `a [n]` and `b [m]`, on the pairs that `mask [n, m]` allows. Immutable.

    The linear programme `min <C, T>` over couplings `T >= 0` with marginals `a`, `b` and `T = 0` off the mask
    (Peyre and Cuturi 2019, equation 2.11), or a relaxation of its marginals, as the solver says.

    Attributes:
        cost: an array, a tensor of any precision, or a `GroundCost`; kept as float64 or as the object.
        a, b: masses; None leaves the default to the solver (uniform).
        mask: true where mass may go; None allows every pair. The cost of a pair that is not allowed is never read.
        device: where a tensor cost lay, else "cpu".

    Raises `TransportError` and `NotFinite` on what is malformed, `InfeasibleError` when the mask allows nothing.
    """

    cost: Any = field(repr=False)
    a: Any = field(default=None, repr=False)
    b: Any = field(default=None, repr=False)
    mask: Any = field(default=None, repr=False)
    device: str = field(default="cpu", init=False)

    def __post_init__(self) -> None:
        keep = object.__setattr__
        if not isinstance(self.cost, (np.ndarray, GroundCost)):
            keep(self, "device", getattr(getattr(self.cost, "device", None), "type", "cpu"))
        lazy = isinstance(self.cost, GroundCost)
        if self.mask is not None:
            keep(self, "mask", as_mask(self.mask, self.cost.shape if lazy else np.shape(self.cost)))
            if self.mask.all():
                keep(self, "mask", None)
            elif not self.mask.any():
                raise InfeasibleError(f"the mask of shape {self.mask.shape} allows no pair at all")
        if not lazy:
            keep(self, "cost", as_cost(self.cost, self.mask))
        for name, size in zip("ab", self.cost.shape):
            if getattr(self, name) is not None:
                keep(self, name, as_masses(getattr(self, name), size, name))
                self._require_worth(float(getattr(self, name).sum()))

    def _require_worth(self, total: float) -> None:
        """Raise `NotFinite` where masses times costs overflow; ordinary totals are covered by the check of the cost."""
        if total > 1e6 and not isinstance(self.cost, GroundCost):
            dearest = float(np.abs(self.cost, where=np.isfinite(self.cost), out=np.zeros(self.shape)).max())
            if dearest > np.finfo(np.float64).max / (1e6 * total):
                raise NotFinite(f"costs of {dearest:.3g} times masses of {total:.3g} overflow; divide the masses")

    @property
    def shape(self) -> tuple[int, int]:
        """`(n, m)`."""
        return self.cost.shape

    @property
    def is_masked(self) -> bool:
        """Whether some pair is forbidden."""
        return self.mask is not None

    @property
    def is_lazy(self) -> bool:
        """Whether the cost is an object that is read by blocks."""
        return isinstance(self.cost, GroundCost)

    @property
    def is_square(self) -> bool:
        """Whether there are as many sources as targets."""
        return self.shape[0] == self.shape[1]

    @property
    def is_uniform(self) -> bool:
        """Whether all masses of a side are equal to rounding."""
        return all(part is None or is_uniform(part) for part in (self.a, self.b))

    @property
    def is_balanced(self) -> bool:
        """Whether both sides carry the same total (to a millionth), so that every unit of mass can be matched."""
        totals = (1.0 if part is None else float(part.sum()) for part in (self.a, self.b))
        return same_total(*totals)

    @property
    def is_assignment(self) -> bool:
        """Square, uniform and balanced: some optimal plan is a permutation (Birkhoff's theorem)."""
        return self.is_square and self.is_uniform and self.is_balanced

    @functools.cached_property
    def matrix(self) -> np.ndarray:
        """The whole cost `[n, m]` in float64, plus infinity where the mask forbids."""
        return as_cost(self.cost, self.mask) if self.is_lazy else self.cost

    @functools.cached_property
    def ground(self) -> GroundCost:
        """The cost read by blocks, forbidden pairs at a price that no plan pays if it need not (`never_paid`)."""
        whole = self.cost if self.is_lazy else DenseCost.checked(self.cost)
        return MaskedCost(whole, self.mask) if self.is_masked else whole

    def balanced(self) -> tuple[np.ndarray, np.ndarray]:
        """Both marginals `[n]` and `[m]`, `b` rescaled by rounding to the total of `a`; `1 / n` and `1 / m` by default.

        Raises `TransportError` when the totals differ by more than one millionth.
        """
        n, m = self.shape
        if self.a is None and self.b is None and n == m:
            masses = np.full(n, 1.0 / n)
            return masses, masses
        a = np.full(n, 1.0 / n) if self.a is None else self.a
        b = np.full(m, 1.0 / m) if self.b is None else self.b
        return a, equal_totals(a, b)

    def loose(self, unit: float | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Both masses `[n]`, `[m]` where some may stay unmatched; every unit carries `unit`, or `1 / max(n, m)`."""
        n, m = self.shape
        unit = 1.0 / max(n, m) if unit is None else unit
        return (np.full(n, unit) if self.a is None else self.a, np.full(m, unit) if self.b is None else self.b)
