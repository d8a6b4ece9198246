"""Files that are never half-written: atomic JSON, safetensors and run folders, and the cache folder.

No pickle is read or written. A folder is built under a temporary name beside its destination and renamed when complete.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featalign.errors import CorruptFile, FolderExists

if TYPE_CHECKING:
    import torch


def cache_folder() -> Path:
    """Cache by platform convention; `FEATALIGN_CACHE` overrides it."""
    import platformdirs

    return Path(os.environ.get("FEATALIGN_CACHE") or platformdirs.user_cache_dir("featalign"))


def fingerprint(config: Mapping[str, Any]) -> str:
    """Sixteen hexadecimal digits that identify a configuration (JSON with sorted keys, SHA-256)."""
    text = json.dumps(config, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_bytes(path: Path | str, content: bytes) -> Path:
    """Write a file under a temporary name in the same folder, then rename it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def write_json(path: Path | str, content: Any) -> Path:
    """Write JSON atomically; numpy and torch scalars become numbers, NaN becomes null."""
    return write_bytes(path, (json.dumps(plain(content), indent=2, allow_nan=False) + "\n").encode())


def read_json(path: Path | str) -> Any:
    """Read JSON; raises `CorruptFile` with the path when it does not parse."""
    path = Path(path)
    try:
        return json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CorruptFile(f"'{path}' is not valid JSON ({error}); delete it and run again") from error


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


def save_tensors(
    path: Path | str, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> Path:
    """Write safetensors atomically."""
    from safetensors.torch import save

    contiguous = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    return write_bytes(path, save(contiguous, dict(metadata or {})))


def load_tensors(path: Path | str) -> dict[str, torch.Tensor]:
    """Read safetensors; raises `CorruptFile` with the path when the file is truncated or of another format."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(path)
    try:
        return load_file(path)
    except (SafetensorError, ValueError) as error:
        raise CorruptFile(f"'{path}' is not a complete safetensors file ({error}); delete it and run again") from error


@contextlib.contextmanager
def atomic_folder(path: Path | str, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary folder that becomes `path` when the block ends and vanishes when it raises.

    Raises `FolderExists` when `path` holds anything and `overwrite` is off.
    """
    path = Path(path)
    refuse_existing(path, overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield temporary
        os.chmod(temporary, 0o755)
        if path.exists():
            shutil.rmtree(path)
        os.replace(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def refuse_existing(path: Path | str, overwrite: bool = False) -> None:
    """Raise `FolderExists` before any work is done when the output folder holds anything."""
    path = Path(path)
    if path.is_file():
        raise FolderExists(f"'{path}' is a file; give a folder")
    if path.is_dir() and any(path.iterdir()) and not overwrite:
        raise FolderExists(f"output folder '{path}' exists; choose another --out or pass --overwrite")


def load_metadata(path: Path | str) -> dict[str, str]:
    """Metadata of a safetensors file; raises `CorruptFile` with the path when it is not one."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, ValueError) as error:
        raise CorruptFile(f"'{path}' is not a complete safetensors file ({error}); delete it and run again") from error
