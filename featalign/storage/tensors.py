"""Safetensors with a checksum: a flipped bit is found when the file is read."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from featalign.errors import CorruptFile
from featalign.storage.files import write_bytes

if TYPE_CHECKING:
    import torch

_CHECKSUM = "sha256"


def save_tensors(
    path: Path | str, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> Path:
    """Write safetensors atomically, with the SHA-256 of names, types, shapes, bytes and metadata beside them."""
    import torch
    from safetensors.torch import save

    plain = torch.contiguous_format  # strides of single entries too, which may be anything in an expanded tensor
    contiguous = {name: tensor.detach().cpu().clone(memory_format=plain) for name, tensor in tensors.items()}
    facts = {key: value for key, value in (metadata or {}).items() if key != _CHECKSUM}
    return write_bytes(path, save(contiguous, {**facts, _CHECKSUM: _digest(contiguous, facts)}))


def load_tensors(path: Path | str, verify: bool = True) -> dict[str, torch.Tensor]:
    """Read safetensors.

    `verify` compares them with the checksum that `save_tensors` wrote; files of other programs hold none. Raises
    `CorruptFile` with the path when the file is missing, truncated, of another format or fails its checksum.
    """
    tensors, metadata = _read(path, with_tensors=True)
    expected = metadata.pop(_CHECKSUM, None)
    if verify and expected is not None and _digest(tensors, metadata) != expected:
        raise CorruptFile(f"{str(path)!r} fails its checksum (a bit changed on disk); delete it and run again")
    return tensors


def load_metadata(path: Path | str) -> dict[str, str]:
    """Metadata of a safetensors file; raises `CorruptFile` with the path when it is not one."""
    _, metadata = _read(path, with_tensors=False)
    metadata.pop(_CHECKSUM, None)
    return metadata


def _read(path: Path | str, with_tensors: bool) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys() if with_tensors else ()
            return {name: file.get_tensor(name) for name in names}, dict(file.metadata() or {})
    except OSError as error:
        raise CorruptFile(f"{str(path)!r} cannot be read: {error.strerror or error}") from error
    except (SafetensorError, ValueError) as error:
        raise CorruptFile(
            f"{str(path)!r} is not a complete safetensors file ({error}); delete it and run again"
        ) from error


def _digest(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> str:
    """SHA-256 over what a file says, independent of the order in which it says it."""
    import torch

    found = hashlib.sha256(repr(sorted(metadata.items())).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        found.update(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode())
        found.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
