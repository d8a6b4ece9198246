"""Files that are never half-written: JSON, safetensors and run folders, the cache, names that are safe as paths.

No pickle is read or written. What cannot be written raises `StorageError`, what cannot be read `CorruptFile`.
"""

from featalign.storage.cache import CacheWarning, cache_folder, cached, fingerprint
from featalign.storage.files import plain, read_json, read_text, read_toml, write_bytes, write_json
from featalign.storage.folders import (
    MARKER,
    atomic_folder,
    claim,
    recover,
    refuse_existing,
    replace_folder,
    require_writable,
)
from featalign.storage.kinds import LOADERS, kind_of, load
from featalign.storage.names import safe_name
from featalign.storage.temporary import sweep, writing
from featalign.storage.tensors import load_metadata, load_tensors, save_tensors
from featalign.storage.versions import versions

__all__ = [
    "LOADERS",
    "MARKER",
    "CacheWarning",
    "atomic_folder",
    "cache_folder",
    "cached",
    "claim",
    "fingerprint",
    "kind_of",
    "load",
    "load_metadata",
    "load_tensors",
    "plain",
    "read_json",
    "read_text",
    "read_toml",
    "recover",
    "refuse_existing",
    "replace_folder",
    "require_writable",
    "safe_name",
    "save_tensors",
    "sweep",
    "versions",
    "write_bytes",
    "write_json",
    "writing",
]
