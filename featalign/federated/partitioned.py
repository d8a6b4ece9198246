"""Partitions of Flower's data sets as clients: any object with `load_partition` and `num_partitions`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from featalign.errors import BadOption

INPUTS, TARGETS = ("image", "img", "inputs", "x"), ("label", "labels", "fine_label", "y")


def partitioned(
    partitioner: Any, inputs: str | None = None, targets: str | None = None
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Inputs `[samples, ...]` and targets of every partition, for `Federation.gather`.

    Args:
        partitioner: of `flwr_datasets` (such as `FederatedDataset.partitioners["train"]`), or anything that gives
            partitions of rows, each a mapping of columns.
        inputs, targets: columns; None takes the usual names (image, img, ...; label, ...). Pictures of whole numbers
            up to 255 become floats in [0, 1].

    Raises `BadOption` for objects that are no partitioner and columns that are not there.
    """
    if not (hasattr(partitioner, "load_partition") and hasattr(partitioner, "num_partitions")):
        raise BadOption(
            f"a {type(partitioner).__name__} is no partitioner; it must have load_partition and num_partitions"
        )
    found = []
    for k in range(int(partitioner.num_partitions)):
        rows = list(partitioner.load_partition(k))
        names = list(rows[0]) if rows else []
        x, y = _column(names, inputs, INPUTS), _column(names, targets, TARGETS)
        held = np.stack([np.asarray(row[x]) for row in rows])
        values = torch.from_numpy(held)
        values = values.float() / 255 if held.dtype == np.uint8 else values.float()
        found.append((values, torch.tensor([row[y] for row in rows])))
    return found


def _column(names: list[str], wanted: str | None, usual: tuple[str, ...]) -> str:
    """The column asked for, or the first of the usual names that is there."""
    for name in (wanted,) if wanted is not None else usual:
        if name in names:
            return name
    shown = repr(wanted) if wanted is not None else " or ".join(repr(name) for name in usual)
    raise BadOption(f"no column {shown}; columns: {', '.join(names) or 'none'}")
