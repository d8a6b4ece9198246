"""What every measure takes: activations or codes of any shape as rows, and labels of any naming as classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from featalign.errors import NotFinite, SpaceMismatch


def rows(values: Any, what: str = "activations") -> torch.Tensor:
    """`[samples, units]` float64 of tensors or arrays `[..., units]`: every position of a token sequence is a sample.

    Raises `SpaceMismatch` for anything without units and `NotFinite` for NaN or infinity.
    """
    found = torch.as_tensor(values).detach()
    if found.dim() < 2 or found.numel() == 0:
        raise SpaceMismatch(f"{what} of shape {tuple(found.shape)}; pass [samples, units] or [samples, tokens, units]")
    found = found.reshape(-1, found.shape[-1]).double()
    if not torch.isfinite(found).all():
        raise NotFinite(
            f"{what} {tuple(found.shape)} hold NaN or infinity; leave those samples out or mend their source"
        )
    return found


@dataclass(frozen=True)
class Classes:
    """Labels as positions `0 ... C - 1` of the classes that are there.

    Attributes:
        index: `[samples]`, -1 where a sample is masked.
        names: label of each class, in increasing order.
    """

    index: torch.Tensor
    names: tuple[Any, ...]

    @classmethod
    def of(cls, labels: Any) -> Classes:
        """Labels `[...]` of any names: integers with gaps, whole floats or strings; negative ones (-100) are masked."""
        found = labels.detach().cpu().numpy() if isinstance(labels, torch.Tensor) else np.asarray(labels)
        found = found.reshape(-1)
        masked = np.zeros(len(found), dtype=bool)
        if found.dtype.kind in "biuf":
            if found.dtype.kind == "f" and not (np.isfinite(found) & (found == np.round(found))).all():
                raise SpaceMismatch("labels are fractions or NaN; pass one class per sample")
            found = found.astype(np.int64)
            masked = found < 0
        names, index = np.unique(found[~masked], return_inverse=True)
        placed = torch.full((len(found),), -1)
        placed[torch.from_numpy(~masked)] = torch.from_numpy(index.reshape(-1))
        return cls(placed, tuple(names.tolist()))

    @property
    def kept(self) -> torch.Tensor:
        """`[samples]`: whether a sample has a class."""
        return self.index >= 0

    @property
    def in_order_of_appearance(self) -> list[int]:
        """Positions of the classes as the samples bring them, which no naming changes."""
        index = self.index[self.kept].numpy()
        found, first = np.unique(index, return_index=True)
        return found[np.argsort(first)].tolist()


def labelled(values: Any, labels: Any, what: str = "activations") -> tuple[torch.Tensor, Classes]:
    """Rows `[samples, units]` and classes of the samples that have one; raises `SpaceMismatch` where counts differ."""
    found, classes = rows(values, what), Classes.of(labels)
    if len(found) != len(classes.index):
        raise SpaceMismatch(f"{len(found)} samples of {what} and {len(classes.index)} labels; pass one per sample")
    return found[classes.kept], Classes(classes.index[classes.kept], classes.names)


def correlation(a: Any, b: Any) -> torch.Tensor:
    """Pearson correlation `[n, m]` of the columns of `a [..., n]` and `b [..., m]`; zero where a column is constant.

    Raises `SpaceMismatch` for different numbers of samples.
    """
    left, right = rows(a), rows(b)
    if len(left) != len(right):
        raise SpaceMismatch(f"{len(left)} and {len(right)} samples; compare on the same inputs")
    sides = []
    for values in (left, right):
        centred = values - values.mean(0)
        norm = centred.norm(dim=0)
        varies = norm > 1e-12 * values.norm(dim=0)
        sides.append(torch.where(varies, centred / norm.clamp_min(1e-300), torch.zeros_like(centred)))
    return sides[0].T @ sides[1]
