"""What the data can support, said before any training: constant units, dead layers, too few samples, large means."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from featalign.dictionaries.rows import Activations, Rows, as_rows, check_finite, chunks, place
from featalign.errors import DictionaryError

FIRINGS_PER_LATENT = 50  # fewer leave a latent to chance
GAMMA_LIMIT = 5.0


class DictionaryWarning(UserWarning):
    """A dictionary that can be trained but should be read with care; the message names the space."""


@dataclass(frozen=True)
class Preflight:
    """Facts about activations `[samples, n]` before a dictionary is trained on them.

    Attributes:
        samples, units: shape.
        constant: units whose value never changes.
        gamma: `|mean| / |std|` of the activation vector; large values predict dead latents unless inputs are centred.
        rank: participation ratio `(tr C)^2 / tr C^2` of the covariance, the effective number of dimensions.
    """

    samples: int
    units: int
    constant: tuple[int, ...]
    gamma: float
    rank: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON holds them."""
        return asdict(self)


def inspect(activations: Activations, metadata: Mapping[str, Any] | None = None) -> Preflight:
    """Look at activations `[samples, n]`; raises `DictionaryError` or `NotFinite` where no dictionary makes sense."""
    where = place(metadata)
    activations = as_rows(activations, metadata)
    samples, units = activations.shape
    if samples < 32:
        raise DictionaryError(
            f"{where}: {samples} samples cannot support a dictionary of {units} units; pass 32 or more"
        )
    check_finite(activations, metadata)
    mean, std = _moments(activations)
    tolerance = 1e-6 * (1 + mean.abs())
    constant = tuple(torch.nonzero(std <= tolerance).flatten().tolist())
    if len(constant) == units:
        raise DictionaryError(f"{where}: all {units} units are constant (a dead layer); there is nothing to decompose")
    if len(constant) > 0:
        shown = ", ".join(map(str, constant[:8])) + (", ..." if len(constant) > 8 else "")
        warn(f"{where}: {len(constant)} of {units} units are constant ({shown}); no latent can describe them")
    centred = activations[:4096].double() - mean
    gram = centred.T @ centred if units < len(centred) else centred @ centred.T  # traces of C, without its spectrum
    rank = float(gram.trace() ** 2 / gram.pow(2).sum().clamp_min(1e-300))
    gamma = float(mean.norm() / std.norm())
    if gamma > GAMMA_LIMIT:
        warn(f"{where}: mean {gamma:.1f} times the spread (gamma); inputs are centred, but expect dead latents")
    return Preflight(samples, units, constant, gamma, rank)


def _moments(rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of each unit, float64, from parts of the rows shifted by the first."""
    first = rows[:1][0].double()
    total, square = torch.zeros_like(first), torch.zeros_like(first)
    for part in chunks(rows):
        shifted = part.double() - first
        total += shifted.sum(0)
        square += shifted.pow(2).sum(0)
    mean = total / len(rows)
    return first + mean, (square / len(rows) - mean**2).clamp_min(0).sqrt()


def default_k(units: int) -> int:
    """Latents active per sample when none is asked for: `1.2 sqrt(n)`, at least 2."""
    return max(2, round(1.2 * units**0.5))


def supported_width(samples: int, k: float) -> int:
    """Most latents that `samples` can support at `k` active each: 50 firings per latent on average."""
    return max(4, int(samples * k / FIRINGS_PER_LATENT))


def choose_width(
    units: int,
    samples: int,
    k: float,
    width: int | None,
    metadata: Mapping[str, Any] | None = None,
    allow_narrow: bool = False,
) -> tuple[int, int]:
    """Width of a dictionary, and what was wanted: the request, else 4 n (2 n above 128 units), both capped by the data.

    A request above the cap is lowered with a `DictionaryWarning` that names the space. Raises `DictionaryError` where
    the data leave fewer latents than the layer has units, unless so few were asked for or `allow_narrow` says so.
    """
    if width is not None and width < 1:
        raise DictionaryError(f"{place(metadata)}: width {width}; pass at least 1")
    cap = supported_width(samples, k)
    wanted = width if width is not None else (4 if units <= 128 else 2) * units
    if wanted > cap and width is not None:
        warn(
            f"{place(metadata)}: width {width} at k={k:g} needs {int(width * FIRINGS_PER_LATENT / k)} samples, "
            f"there are {samples}; width lowered to {cap}"
        )
    found = min(wanted, cap)
    if found < min(units, wanted) and not allow_narrow:
        need = math.ceil(units * FIRINGS_PER_LATENT / k)
        raise DictionaryError(
            f"{place(metadata)}: {samples} training rows carry {cap} latents at k={k:g}, the layer has {units} units; "
            f"pass {need} rows, or width= or allow_narrow=True for a dictionary narrower than its layer"
        )
    return found, wanted


def warn(message: str) -> None:
    """Say what was found about the data or changed in the request."""
    warnings.warn(message, DictionaryWarning, stacklevel=4)
