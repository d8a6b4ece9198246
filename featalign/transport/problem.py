"""A transport problem that was checked before any solver sees it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from featalign.errors import BadOption, NotFinite, TransportError

SINGLE_THREADED = 10_000  # longer dot products start threads, which wait for each other on a busy machine
MASS_TOLERANCE = 1e-6  # relative; float32 masses that should sum to one do so to about this


def as_cost(cost: Any) -> np.ndarray:
    """Ground cost `[n, m]` as a float64 array; arrays, torch tensors and ground-cost objects are taken.

    Raises `TransportError` when it is not a matrix or has no rows or columns, `NotFinite` on NaN or infinity.
    """
    if hasattr(cost, "dense"):
        cost = cost.dense()
    elif hasattr(cost, "detach"):
        cost = cost.detach().cpu().numpy()
    array = np.asarray(cost, dtype=np.float64)
    if array.ndim != 2:
        raise TransportError(f"ground cost has shape {array.shape}; a matrix [sources, targets] is needed")
    if 0 in array.shape:
        raise TransportError(f"ground cost has shape {array.shape}: empty support; drop the space or add units")
    require_finite(array, "ground cost")
    return array


def require_finite(array: np.ndarray, name: str) -> None:
    """Raise `NotFinite` with the first offending entry, or when sums of entries would overflow."""
    flat = array.ravel()
    if flat.size <= SINGLE_THREADED:
        total = flat.dot(flat)  # NaN and infinity survive squaring and summing
    else:
        with np.errstate(all="ignore"):
            total = flat.sum()
    if math.isfinite(total):
        return
    bad = ~np.isfinite(array)
    if bad.any():
        where = tuple(int(i) for i in np.argwhere(bad)[0])
        raise NotFinite(
            f"{name} of shape {array.shape} holds {int(bad.sum())} NaN or infinite entries, the first at {where}; "
            "mask forbidden pairs with a large finite cost and check the activations for overflow"
        )
    if np.abs(array).max() > np.finfo(array.dtype).max / (1e6 * array.size):
        raise NotFinite(f"{name} of shape {array.shape} overflows when summed; divide it by its largest entry")


def as_masses(masses: Any, size: int, name: str, default: float | None = None) -> np.ndarray:
    """Masses `[size]` in float64; None gives every unit `default` (or `1 / size`).

    Raises `TransportError` on a wrong length, a negative mass or no mass at all, `NotFinite` on NaN or infinity.
    """
    if masses is None:
        return np.full(size, 1.0 / size if default is None else default)
    if hasattr(masses, "detach"):
        masses = masses.detach().cpu().numpy()
    array = np.array(masses, dtype=np.float64)
    if array.shape != (size,):
        raise TransportError(f"masses {name} have shape {array.shape} and the ground cost wants ({size},)")
    if not np.isfinite(array).all():
        raise NotFinite(f"masses {name} hold NaN or infinity at index {int(np.argmin(np.isfinite(array)))}")
    if (array < 0).any():
        raise TransportError(f"masses {name} are negative at index {int(np.argmin(array))} ({array.min():.3g})")
    if array.sum() <= 0:
        raise TransportError(f"masses {name} are all zero: empty support; at least one unit must carry mass")
    return array


def balanced_masses(a: Any, b: Any, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Both marginals for a balanced problem, `b` rescaled (by rounding only) to the total of `a`.

    Raises `TransportError` when the totals differ by more than one millionth.
    """
    a, b = as_masses(a, shape[0], "a"), as_masses(b, shape[1], "b")
    total_a, total_b = a.sum(), b.sum()
    if abs(total_a - total_b) > MASS_TOLERANCE * max(total_a, total_b):
        raise TransportError(
            f"masses a sum to {total_a:.9g} and masses b to {total_b:.9g}; normalise both, "
            "or use method='partial' or 'unbalanced' if mass may stay unmatched"
        )
    return a, b * (total_a / total_b)


def is_uniform(masses: np.ndarray) -> bool:
    """Whether all masses are equal to rounding."""
    return bool(np.ptp(masses) <= 1e-12 * masses.max())


def positive(value: float, name: str, upper: float = np.inf) -> float:
    """The option as a float in `(0, upper]`; raises `BadOption` otherwise."""
    number = float(value)
    if not 0 < number <= upper:
        bound = f" and at most {upper:g}" if np.isfinite(upper) else ""
        raise BadOption(f"{name}={value!r}: give a positive number{bound}")
    return number
