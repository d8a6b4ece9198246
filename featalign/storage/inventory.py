"""What the cache holds, by kind, and how to be rid of it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from featalign.errors import StorageError, UnknownName
from featalign.storage.cache import cache_folder

FETCHED = "data"  # brought to this machine, not computed: cleared only when named


@dataclass(frozen=True)
class Kept:
    """One kind of cache entry: its folder's name, how many entries, bytes altogether."""

    kind: str
    entries: int
    size: int


def inventory() -> list[Kept]:
    """Every kind that the cache holds, the largest first; empty where there is no cache."""
    folder = cache_folder()
    if not folder.is_dir():
        return []
    kinds = [path for path in folder.iterdir() if path.is_dir()]
    found = [Kept(path.name, sum(1 for _ in path.iterdir()), _size(path)) for path in kinds]
    return sorted(found, key=lambda kept: -kept.size)


def clear_cache(kind: str | None = None) -> int:
    """Delete one kind, or everything that can be computed again (data sets stay unless named); bytes set free.

    Raises `UnknownName` for a kind that the cache does not hold, `StorageError` where it cannot be deleted.
    """
    held = {kept.kind: kept for kept in inventory()}
    if kind is not None and kind not in held:
        raise UnknownName(f"the cache holds no '{kind}'; it holds: {', '.join(held) or 'nothing'}")
    going = [kept for name, kept in held.items() if (kind or name) == name and (kind is not None or name != FETCHED)]
    for kept in going:
        try:
            shutil.rmtree(cache_folder() / kept.kind)
        except OSError as error:
            raise StorageError(f"cannot delete '{error.filename}': {error.strerror}; check its permissions") from error
    return sum(kept.size for kept in going)


def _size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
