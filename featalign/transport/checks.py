"""Costs, masses and options as float64, checked before any solver sees them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from featalign.errors import BadOption, NotFinite, TransportError

SINGLE_THREADED = 10_000  # longer dot products start threads, which wait for each other on a busy machine
LARGEST_MASS = 1e150  # totals up to here can be multiplied by costs and by each other's inverses
SMALLEST_MASS = 1e-290
ROUNDING = 1e-12  # relative; totals that differ by no more are the same number
MASS_TOLERANCE = 1e-6  # relative; float32 masses that should sum to one do so to about this


def as_floats(values: Any, name: str) -> np.ndarray:
    """Float64 array of an array, a nested list or a tensor of any precision (bfloat16 and float16 too).

    Raises `TransportError` on entries that are no real numbers.
    """
    if type(values) is np.ndarray and values.dtype == np.float64:
        return values
    if hasattr(values, "detach"):
        values = values.detach()
        if values.is_floating_point():  # numpy has no bfloat16
            values = values.double()
        values = values.cpu().numpy()
    try:
        array = np.asarray(values)
        if array.dtype.kind == "c":
            raise TypeError("complex numbers")
        return array.astype(np.float64, copy=False)
    except (TypeError, ValueError) as error:
        raise TransportError(f"{name} must hold real numbers: {error}") from error


def as_cost(cost: Any, mask: np.ndarray | None = None) -> np.ndarray:
    """Ground cost `[n, m]` as a float64 array; arrays, torch tensors and ground-cost objects are taken.

    Where `mask [n, m]` is false the entry may be anything and becomes plus infinity.

    Raises `TransportError` when it is not a matrix or has no rows or columns, `NotFinite` on NaN or infinity.
    """
    array = as_floats(cost.dense() if hasattr(cost, "dense") else cost, "ground cost")
    if array.ndim != 2:
        raise TransportError(f"ground cost has shape {array.shape}; a matrix [sources, targets] is needed")
    if 0 in array.shape:
        raise TransportError(f"ground cost has shape {array.shape}: empty support; drop the space or add units")
    if mask is None:
        require_finite(array, "ground cost")
        return array
    require_finite(np.where(mask, array, 0.0), "ground cost")
    return np.where(mask, array, np.inf)


def as_mask(mask: Any, shape: tuple[int, int]) -> np.ndarray:
    """Mask `[n, m]` of pairs that may carry mass, as booleans; zeros and ones are taken, other numbers are not."""
    array = as_floats(mask, "mask")
    if array.shape != shape:
        raise TransportError(f"mask has shape {array.shape} and the ground cost {shape}")
    if not ((array == 0) | (array == 1)).all():
        raise TransportError("mask holds other values than 0 and 1; it says which pairs may carry mass")
    return array == 1


def require_finite(array: np.ndarray, name: str) -> None:
    """Raise `NotFinite` with the first offending entry, or when sums of entries would overflow."""
    flat = array.ravel()
    with np.errstate(all="ignore"):  # NaN and infinity survive squaring and summing
        total = flat.dot(flat) if flat.size <= SINGLE_THREADED else flat.sum()
    if math.isfinite(total):
        return
    bad = ~np.isfinite(array)
    if bad.any():
        where = tuple(int(i) for i in np.argwhere(bad)[0])
        raise NotFinite(
            f"{name} of shape {array.shape} holds {int(bad.sum())} NaN or infinite entries, the first at {where}; "
            "forbid pairs with mask= (true where mass may go), and check the activations for overflow"
        )
    if np.abs(array).max() > np.finfo(array.dtype).max / (1e6 * array.size):
        raise NotFinite(f"{name} of shape {array.shape} overflows when summed; divide it by its largest entry")


def as_masses(masses: Any, size: int, name: str, default: float | None = None) -> np.ndarray:
    """Masses `[size]` in float64; None gives every unit `default` (or `1 / size`).

    Raises `TransportError` on a wrong length, a negative mass or no mass at all, `NotFinite` on NaN or infinity.
    """
    if masses is None:
        return np.full(size, 1.0 / size if default is None else default)
    array = as_floats(masses, f"masses {name}")
    if array.shape != (size,):
        raise TransportError(f"masses {name} have shape {array.shape} and the ground cost wants ({size},)")
    if not np.isfinite(array).all():
        raise NotFinite(f"masses {name} hold NaN or infinity at index {int(np.argmin(np.isfinite(array)))}")
    if (array < 0).any():
        raise TransportError(f"masses {name} are negative at index {int(np.argmin(array))} ({array.min():.3g})")
    if array.max() > LARGEST_MASS / size:
        raise NotFinite(f"masses {name} of up to {array.max():.3g} overflow when summed; divide them by their largest")
    if array.max() <= 0:
        raise TransportError(f"masses {name} are all zero: empty support; at least one unit must carry mass")
    if array.sum() < SMALLEST_MASS:
        raise TransportError(
            f"masses {name} sum to {array.sum():.3g}, below what floats can divide; divide them by their largest"
        )
    return array + 0.0  # a copy, without negative zeros


def equal_totals(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """`b` rescaled (by rounding only) to the total of `a`.

    Raises `TransportError` when the totals differ by more than one millionth.
    """
    total_a, total_b = a.sum(), b.sum()
    if not same_total(total_a, total_b):
        raise TransportError(
            f"masses a sum to {total_a:.9g} and masses b to {total_b:.9g}; normalise both, "
            "or use method='partial' or 'unbalanced' if mass may stay unmatched"
        )
    return b * (total_a / total_b)


def same_total(total_a: float, total_b: float, tolerance: float = MASS_TOLERANCE) -> bool:
    """Whether two totals agree relative to the larger."""
    return abs(total_a - total_b) <= tolerance * max(total_a, total_b)


def is_uniform(masses: np.ndarray) -> bool:
    """Whether all masses are equal to rounding."""
    return bool(np.ptp(masses) <= ROUNDING * masses.max())


def positive(value: float, name: str, upper: float = np.inf) -> float:
    """The option as a float in `(0, upper]`; raises `BadOption` otherwise."""
    number = float(value)
    if not 0 < number <= upper:
        bound = f" and at most {upper:g}" if np.isfinite(upper) else ""
        raise BadOption(f"{name}={value!r}: give a positive number{bound}")
    return number
