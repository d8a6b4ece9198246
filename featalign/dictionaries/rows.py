"""Activations of any shape, type and home as rows `[samples, units]`, without a copy where there need not be one."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from featalign.errors import DictionaryError, NotFinite
from featalign.spaces.store import ActivationStore

Activations = torch.Tensor | np.ndarray | ActivationStore
Rows = torch.Tensor | ActivationStore  # `[samples, units]` with `shape`, `split` and indices
CHUNK = 2**22  # entries looked at at a time


def place(metadata: Mapping[str, Any] | None) -> str:
    """How messages name the space a dictionary belongs to."""
    metadata = metadata or {}
    parts = [f"{key} '{metadata[key]}'" for key in ("client", "space") if metadata.get(key) is not None]
    return ", ".join(parts) or "the given activations"


def as_rows(activations: Activations, metadata: Mapping[str, Any] | None = None) -> Rows:
    """`[samples, units]` of activations `[..., units]`: tensors, arrays and memory maps, floating point of any width.

    Nothing is read: a memory map stays one, and so does an `ActivationStore`. Raises `DictionaryError` for anything
    else.
    """
    if isinstance(activations, ActivationStore):
        return activations
    if isinstance(activations, np.ndarray):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*not writable", UserWarning)  # nothing here writes to it
            try:
                activations = torch.from_numpy(activations)
            except TypeError as error:
                raise DictionaryError(f"{place(metadata)}: activations of type {activations.dtype}") from error
    if not isinstance(activations, torch.Tensor):
        kind = type(activations).__name__
        raise DictionaryError(f"{place(metadata)}: activations of type {kind}; pass a tensor or array [samples, units]")
    shape = tuple(activations.shape)
    if activations.dim() < 2 or not activations.is_floating_point():
        raise DictionaryError(
            f"{place(metadata)}: activations {shape} of {activations.dtype}; pass numbers [samples, units]"
        )
    return activations.detach().reshape(-1, shape[-1])


def held_rows(activations: Activations, metadata: Mapping[str, Any] | None = None) -> torch.Tensor:
    """The same as one float32 tensor, for what needs all rows at once; a store is read whole."""
    rows = as_rows(activations, metadata)
    return rows[:] if isinstance(rows, ActivationStore) else rows.float()


def chunks(rows: Rows) -> Iterable[torch.Tensor]:
    """Parts of at most `CHUNK` entries."""
    return rows.split(max(1, CHUNK // max(1, rows.shape[-1])))


def check_finite(values: Rows, metadata: Mapping[str, Any] | None = None) -> None:
    """Raise `NotFinite` for NaN or infinity."""
    for part in chunks(values if isinstance(values, ActivationStore) else values.reshape(-1, values.shape[-1])):
        if not torch.isfinite(part).all():
            raise NotFinite(f"{place(metadata)}: activations hold NaN or infinity; check the client's weights")
