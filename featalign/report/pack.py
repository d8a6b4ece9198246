"""Compact data for widgets: numbers as base64, one table of strings, shards of compressed JSON."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from featalign import storage

_KINDS = {"u8": "<u1", "u16": "<u2", "u32": "<u4", "f32": "<f4"}


class Strings:
    """A table of strings, each of them once; number 0 is the empty one."""

    def __init__(self) -> None:
        self.table: list[str] = [""]
        self._places: dict[str, int] = {"": 0}

    def add(self, text: str) -> int:
        """The number of a string."""
        place = self._places.setdefault(text, len(self.table))
        if place == len(self.table):
            self.table.append(text)
        return place

    def add_all(self, texts: Iterable[str]) -> np.ndarray:
        """The numbers of strings."""
        return np.array([self.add(text) for text in texts], dtype=np.int64)


def numbers(values: Any, kind: str) -> dict[str, str]:
    """Numbers of any shape, in order, as little-endian base64 under their kind: u8, u16, u32 or f32.

    Whole numbers are rounded and cut to what the kind holds.
    """
    array = np.asarray(values, dtype=np.float64)
    if kind != "f32":
        array = np.clip(np.round(np.nan_to_num(array)), 0, np.iinfo(_KINDS[kind]).max)
    return {kind: base64.b64encode(np.ascontiguousarray(array.astype(_KINDS[kind])).tobytes()).decode()}


def shard(rows: Sequence[Any]) -> str:
    """Plain rows as JSON, gzip and base64."""
    text = json.dumps(storage.plain(rows), separators=(",", ":"), allow_nan=False)
    return base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode()


def split(content: Mapping[str, Any], folder: Path | str, name: str = "features") -> dict[str, Any]:
    """Write the shards of a widget into `folder/<name>` and return the content that reads them from there.

    Files are scripts that hand over their text: of all that lies beside a page opened from a disk, a browser reads
    scripts alone. The page that shows the content must be written into `folder`.
    """
    files = []
    for place, text in enumerate(content["shards"]):
        path = f"{name}/{place}.js"
        code = f"featalignFile({json.dumps(path)},{json.dumps(text)})\n"
        storage.write_bytes(Path(folder) / path, code.encode("ascii"))
        files.append(path)
    return {**content, "shards": [], "files": files}
