"""The transport plan and its certificate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Plan:
    """A coupling between `n` sources and `m` targets, with what proves how good it is. Immutable.

    Attributes:
        coupling: `[n, m]` float64, dense or `scipy.sparse.csr_array`; the mass sent from i to j.
        a, b: the marginals that were asked for, `[n]` and `[m]`, float64.
        value: primal value of the problem solved (transport cost, plus the price of unmatched mass if partial).
        lower_bound: dual value of feasible potentials on the full cost; `lower_bound <= value` up to rounding.
        method, reason: the solver that ran and why it was chosen.
        iterations: of the solver; 0 for direct methods.
        potentials: feasible duals `(f [n], g [m])` behind `lower_bound`, or None.

    Attributes of a plan made by `Plan.deferred` are computed when they are first read: the assignment solver proves
    optimality as it runs, so its potentials and bound are not recovered until somebody looks at them.
    """

    coupling: Any = field(repr=False)
    a: np.ndarray = field(repr=False)
    b: np.ndarray = field(repr=False)
    value: float
    lower_bound: float
    method: str
    reason: str = ""
    iterations: int = 0
    potentials: tuple[np.ndarray, np.ndarray] | None = field(default_factory=lambda: None, repr=False)

    @classmethod
    def deferred(cls, known: dict[str, Any], later: dict[str, Callable[[Plan], Any]]) -> Plan:
        """A plan whose attributes in `later` are computed from the plan itself on first access."""
        plan = object.__new__(cls)
        plan.__dict__.update(known, _later=later)
        return plan

    def __getattr__(self, name: str) -> Any:
        """Reached only by attributes that are not there yet."""
        later = self.__dict__.get("_later", {})
        if name not in later:
            raise AttributeError(f"a plan has no attribute '{name}'")
        self.__dict__[name] = value = later[name](self)
        return value

    @property
    def shape(self) -> tuple[int, int]:
        """`(n, m)`."""
        return self.coupling.shape

    @property
    def mass(self) -> float:
        """Total mass that is matched."""
        return float(self.coupling.sum())

    @property
    def gap(self) -> float:
        """`value - lower_bound`: the plan is at most this far from optimal."""
        return self.value - self.lower_bound

    @property
    def marginal_error(self) -> float:
        """Total violation of both marginals as a share of the mass.

        Partial plans may fall short, never exceed; unbalanced plans deviate by design and report by how much.
        """
        rows = np.asarray(self.coupling.sum(axis=1)).ravel() - self.a
        columns = np.asarray(self.coupling.sum(axis=0)).ravel() - self.b
        total = max(float(self.a.sum()), 1e-300)
        if self.method == "partial":
            rows, columns = rows.clip(min=0), columns.clip(min=0)
        return float(np.abs(rows).sum() + np.abs(columns).sum()) / total

    def dense(self) -> np.ndarray:
        """The coupling as an array `[n, m]`."""
        return self.coupling.toarray() if scipy.sparse.issparse(self.coupling) else np.asarray(self.coupling)

    @property
    def pairs(self) -> np.ndarray:
        """Matched pairs `[p, 2]`: each source with the target that takes most of its mass, if that target agrees."""
        coupling = scipy.sparse.csr_array(self.coupling)
        if coupling.nnz == 0:
            return np.zeros((0, 2), dtype=int)
        best_target = np.asarray(coupling.argmax(axis=1)).ravel()
        best_source = np.asarray(coupling.argmax(axis=0)).ravel()
        sources = np.flatnonzero(np.asarray(coupling.sum(axis=1)).ravel() > 0)
        mutual = sources[best_source[best_target[sources]] == sources]
        return np.stack([mutual, best_target[mutual]], axis=1)

    @property
    def unmatched(self) -> tuple[np.ndarray, np.ndarray]:
        """Sources and targets that take part in no pair: indices `[unmatched]` of either side."""
        pairs = self.pairs
        return (
            np.setdiff1d(np.arange(self.shape[0]), pairs[:, 0]),
            np.setdiff1d(np.arange(self.shape[1]), pairs[:, 1]),
        )

    def to_frame(self) -> pd.DataFrame:
        """One row per matched pair: source, target, mass."""
        import pandas as pd

        pairs = self.pairs
        mass = scipy.sparse.csr_array(self.coupling)[pairs[:, 0], pairs[:, 1]] if len(pairs) else []
        return pd.DataFrame({"source": pairs[:, 0], "target": pairs[:, 1], "mass": np.asarray(mass, dtype=float)})

    def _repr_html_(self) -> str:
        import html

        cells = "".join(
            f"<tr><th style='text-align:left'>{html.escape(name.replace('_', ' '))}</th>"
            f"<td>{html.escape(f'{value:.6g}' if isinstance(value, float) else str(value))}</td></tr>"
            for name, value in self.to_dict().items()
        )
        return f"<table>{cells}</table>"

    def to_dict(self) -> dict[str, Any]:
        """Certificate as plain numbers, without the coupling."""
        return {
            "shape": list(self.shape),
            "method": self.method,
            "reason": self.reason,
            "value": self.value,
            "lower_bound": self.lower_bound,
            "gap": self.gap,
            "mass": self.mass,
            "marginal_error": self.marginal_error,
            "iterations": self.iterations,
            "pairs": len(self.pairs),
        }
