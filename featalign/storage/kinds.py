"""Run folders by their kind: whoever writes one registers how it is read back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from featalign.errors import CorruptFile
from featalign.registry import Registry
from featalign.storage.files import read_json
from featalign.storage.folders import MARKER

LOADERS: Registry[Callable[[Path], Any]] = Registry("kind of run folder")


def kind_of(folder: Path | str) -> str:
    """The kind that the marker of a run folder names; raises `CorruptFile` where there is no marker."""
    if not (Path(folder) / MARKER).is_file():
        raise CorruptFile(f"'{folder}' is no folder that featalign saved (it has no {MARKER}); run it again")
    content = read_json(Path(folder) / MARKER)
    kind = content.get("kind") if isinstance(content, dict) else None
    if not isinstance(kind, str):
        raise CorruptFile(f"'{Path(folder) / MARKER}' names no kind; run it again")
    return kind


def load(folder: Path | str) -> Any:
    """What was saved in a run folder, by the loader that its kind registered."""
    return LOADERS[kind_of(folder)](Path(folder))
