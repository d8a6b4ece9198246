"""Hidden temporary names that say which process made them, and sweeping those of dead processes."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import platform
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from featalign.errors import FeatalignError, StorageError

_HIDDEN = re.compile(r"\.(?P<name>.+)\.(?P<node>[0-9a-f]{6})-(?P<pid>\d+)-[0-9a-f]{8}\.(?P<kind>tmp|old)", re.DOTALL)
_ABANDONED = 7 * 24 * 3600  # seconds after which a temporary of another machine counts as left behind
_LONGEST = 200  # bytes of a name inside a hidden name
_REMEDIES = {
    errno.ENOSPC: "free some space or choose another folder",
    errno.EDQUOT: "free some space or choose another folder",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOTDIR: "a part of the path is a file; choose another folder",
    errno.EEXIST: "a part of the path is a file; choose another folder",
}


@contextlib.contextmanager
def writing(path: Path | str) -> Iterator[None]:
    """Inside, an `OSError` or an impossible path becomes a one-line `StorageError` that names `path` and the remedy."""
    try:
        yield
    except FeatalignError:
        raise
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0, "choose a folder that you can write to")
        raise StorageError(f"cannot write {str(path)!r}: {error.strerror or error}; {remedy}") from error
    except (ValueError, RuntimeError) as error:  # null bytes, names that the file system cannot encode, symlink loops
        raise StorageError(f"cannot write {str(path)!r}: {error}; choose another name") from error


def hidden(path: Path, kind: str) -> Path:
    """A fresh hidden sibling of `path` for this process; `kind` is tmp (being written) or old (being replaced)."""
    return path.parent / f".{short(path.name)}.{_node()}-{os.getpid()}-{secrets.token_hex(4)}.{kind}"


def hidden_of(path: Path, kind: str) -> list[Path]:
    """Hidden siblings of `path` of one kind, whichever process made them."""
    found = ((entry, _HIDDEN.fullmatch(entry)) for entry in _names(path.parent))
    return [path.parent / entry for entry, m in found if m and m["kind"] == kind and m["name"] == short(path.name)]


def short(name: str) -> str:
    """The name itself, or its beginning and hash where it would not fit into a hidden name."""
    whole = os.fsencode(name)
    if len(whole) <= _LONGEST:
        return name
    return os.fsdecode(whole[: _LONGEST - 20]) + "~" + hashlib.sha256(whole).hexdigest()[:16]


def sweep(folder: Path | str) -> None:
    """Remove hidden temporary files and folders in `folder` whose process is dead (or, elsewhere, a week old)."""
    folder = Path(folder)
    for name in _names(folder):
        match = _HIDDEN.fullmatch(name)
        if match and match["kind"] == "tmp" and _abandoned(folder / name, match["node"], int(match["pid"])):
            remove(folder / name)


def remove(path: Path) -> None:
    """Remove a file or folder; what cannot be removed stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _node() -> str:
    """Six hexadecimal digits of this machine, since process numbers mean nothing on another."""
    return hashlib.sha256(platform.node().encode("utf-8", "replace")).hexdigest()[:6]


def _abandoned(path: Path, node: str, pid: int) -> bool:
    if node != _node():
        with contextlib.suppress(OSError):
            return time.time() - path.lstat().st_mtime > _ABANDONED
        return False
    if os.name != "posix":
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except OSError:
        return False
    return False
