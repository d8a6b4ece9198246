"""The cache: optional by nature. What is damaged is built again, what cannot be kept is gone without."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from featalign.errors import CorruptFile, FeatalignError, FolderExists, FolderInUse
from featalign.storage.files import read_json, write_json
from featalign.storage.folders import MARKER, atomic_folder

Value = TypeVar("Value")
CHECKSUMS = "checksums.json"


class CacheWarning(UserWarning):
    """A cache entry that was damaged and is built again, or a cache that cannot be written."""


def cache_folder() -> Path:
    """Cache by platform convention; `FEATALIGN_CACHE` overrides it."""
    import platformdirs

    return Path(os.environ.get("FEATALIGN_CACHE") or platformdirs.user_cache_dir("featalign"))


def fingerprint(config: Mapping[str, Any]) -> str:
    """Sixteen hexadecimal digits that identify a configuration (JSON with sorted keys, SHA-256)."""
    text = json.dumps(config, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def cached(
    folder: Path | str, build: Callable[[], Value], load: Callable[[Path], Value], save: Callable[[Value, Path], Any]
) -> Value:
    """What a cache folder holds, or what `build` makes, kept there for the next time.

    Args:
        folder: entry of the cache, named after everything that decides the value (`fingerprint`).
        build: makes the value, when the entry is missing or damaged.
        load: reads the value from the entry, whose files have been compared with their SHA-256 before.
        save: writes the value into an empty folder, which becomes the entry when complete.

    A damaged entry (a flipped bit, a missing file, one that `load` rejects) is built again with a one-line
    `CacheWarning`. A cache that is full, read-only or impossible costs a `CacheWarning`; the value is returned all the
    same. Only `build` can raise.
    """
    folder = Path(folder)
    try:
        if folder.is_dir():
            _verify(folder)
            return load(folder)
    except (FeatalignError, OSError, RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        warnings.warn(f"cache entry {str(folder)!r} is not usable ({reason}); built again", CacheWarning, stacklevel=2)
        shutil.rmtree(folder, ignore_errors=True)
    value = build()
    try:
        with atomic_folder(folder, kind="cache") as temporary:
            save(value, temporary)
            write_json(temporary / CHECKSUMS, _checksums(temporary))
    except (FolderInUse, FolderExists):  # another process keeps the same value
        pass
    except (FeatalignError, OSError) as error:
        reason = getattr(error.__cause__, "strerror", None) or str(error).splitlines()[0]
        warnings.warn(
            f"nothing can be kept in {str(folder.parent)!r} ({reason}); going on without the cache",
            CacheWarning,
            stacklevel=2,
        )
    return value


def _verify(folder: Path) -> None:
    expected = read_json(folder / CHECKSUMS)
    found = _checksums(folder)
    if differing := sorted(name for name in expected if found.get(name) != expected[name]):
        raise CorruptFile(f"'{differing[0]}' fails its checksum" if differing[0] in found else f"no '{differing[0]}'")


def _checksums(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, by its path inside it."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name not in {MARKER, CHECKSUMS})
    return {path.relative_to(folder).as_posix(): _sha256(path) for path in files}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
