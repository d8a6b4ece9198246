"""Importance and law of presence as CSV files, and the report on them."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np

from featalign.errors import CorruptFile, DataUnavailable, TransportError
from featalign.transport.avot import AvotWeights


def read_importance(path: Path | str) -> tuple[list[str], np.ndarray]:
    """Users and their importance from a CSV with columns `user,p`.

    Raises `DataUnavailable` when there is no such file, `CorruptFile` with the line that is malformed.
    """
    rows = _rows(path, ("user", "p"))
    names = [row[0] for row in rows]
    if len(set(names)) < len(names):
        raise CorruptFile(f"'{path}' names a user twice")
    return names, np.array([_number(row[1], path, k) for k, row in enumerate(rows)])


def read_law(path: Path | str, names: list[str]) -> tuple[list[list[int]], np.ndarray]:
    """Subsets (indices into `names`) and probabilities from a CSV with columns `users,q`, users separated by spaces.

    Raises `DataUnavailable`, `CorruptFile`, and `TransportError` for a user that has no importance.
    """
    index = {name: k for k, name in enumerate(names)}
    rows = _rows(path, ("users", "q"))
    subsets = []
    for row in rows:
        unknown = [name for name in row[0].split() if name not in index]
        if unknown:
            raise TransportError(f"'{path}' names user '{unknown[0]}', who is not in the importance file")
        subsets.append([index[name] for name in row[0].split()])
    return subsets, np.array([_number(row[1], path, k) for k, row in enumerate(rows)])


def avot_report(p: Path | str, subsets: Path | str, relax: float = 1.0) -> dict[str, Any]:
    """Fit the law in the files and report on it, with names of users; feasible or not."""
    names, importance = read_importance(p)
    law, q = read_law(subsets, names)
    weights = AvotWeights(importance, relax).fit(law, q, strict=False)
    report = weights.report()
    report["worst_set"] = [names[k] for k in report["worst_set"]]
    report["phat"] = dict(zip(names, report["phat"].tolist()))
    report["weights"] = [
        {"users": [names[k] for k in members], "weights": weights.weights(members).tolist()} for members in law
    ]
    return report


def _rows(path: Path | str, header: tuple[str, str]) -> list[list[str]]:
    path = Path(path)
    if not path.is_file():
        raise DataUnavailable(f"there is no file '{path}'; give a CSV with columns {','.join(header)}")
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = [[cell.strip() for cell in row] for row in csv.reader(file) if any(cell.strip() for cell in row)]
    if not rows or tuple(rows[0]) != header:
        raise CorruptFile(f"'{path}' does not start with the header {','.join(header)}")
    for k, row in enumerate(rows[1:], 2):
        if len(row) != 2:
            raise CorruptFile(f"'{path}' line {k} has {len(row)} columns; 2 are needed: {','.join(header)}")
    return rows[1:]


def _number(text: str, path: Path | str, row: int) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise CorruptFile(f"'{path}' line {row + 2}: '{text}' is not a number") from error
