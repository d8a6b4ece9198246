"""Single files: written under a temporary name and renamed, read as UTF-8."""

from __future__ import annotations

import functools
import json
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from featalign.errors import CorruptFile
from featalign.storage.temporary import hidden, remove, sweep, writing


def write_bytes(path: Path | str, content: bytes) -> Path:
    """Write a file under a temporary name in the same folder, then rename it; raises `StorageError`."""
    path = Path(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep_once(path.parent)
        temporary = hidden(path, "tmp")
        try:
            with temporary.open("xb") as file:
                file.write(content)
            os.replace(temporary, path)
        except BaseException:
            remove(temporary)
            raise
    return path


@functools.lru_cache(maxsize=256)
def _sweep_once(folder: Path) -> None:
    """Remove what dead processes left in a folder, the first time this process writes there."""
    sweep(folder)


def write_json(path: Path | str, content: Any) -> Path:
    """Write JSON atomically; numpy and torch scalars become numbers, NaN becomes null."""
    return write_bytes(path, (json.dumps(plain(content), indent=2, allow_nan=False) + "\n").encode("ascii"))


def read_text(path: Path | str) -> str:
    """Read UTF-8 text; raises `CorruptFile` with the path when it is missing, unreadable or not UTF-8."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise CorruptFile(f"{str(path)!r} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise CorruptFile(f"{str(path)!r} is not UTF-8 text ({error}); delete it and run again") from error


def read_json(path: Path | str) -> Any:
    """Read JSON; raises `CorruptFile` with the path when it does not parse."""
    try:
        return json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise CorruptFile(f"{str(path)!r} is not valid JSON ({error}); delete it and run again") from error


def read_toml(path: Path | str) -> dict[str, Any]:
    """Read TOML; raises `CorruptFile` with the path when it does not parse."""
    try:
        return tomllib.loads(read_text(path))
    except tomllib.TOMLDecodeError as error:
        raise CorruptFile(f"'{path}' is not valid TOML: {error}") from error


def plain(value: Any) -> Any:
    """Reduce a value to what JSON holds: dict, list, str, bool, int, float, None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [plain(item) for item in value]
    if hasattr(value, "to_dict"):
        return plain(value.to_dict())
    if hasattr(value, "tolist"):  # numpy and torch, arrays and scalars
        return plain(value.tolist())
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None
    if isinstance(value, (str, int, bool)) or value is None:
        return value
    return str(value)
