"""Run folders: built beside their place, moved in when complete, replaced only when they hold a run."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

from featalign.errors import FolderExists, FolderInUse
from featalign.storage.files import write_json
from featalign.storage.temporary import hidden, hidden_of, remove, short, sweep, writing

try:
    import fcntl
except ImportError:  # no file locks on this platform: two runs on one folder are not noticed there
    fcntl = None  # type: ignore[assignment]

MARKER = ".featalign"
VERSION = 1
LOCK = ".featalign-lock"
_UNMARKED = ({"results.json", "config.toml"}, {"results.json", "browser.json"}, {"cfg.json", "sae_weights.safetensors"})
_DICTIONARY = {"cfg.json", "sae_weights.safetensors", "history.json", MARKER}
_CLAIMED: ContextVar[frozenset[Path]] = ContextVar("claimed", default=frozenset())


@contextlib.contextmanager
def atomic_folder(path: Path | str, overwrite: bool = False, kind: str = "run") -> Iterator[Path]:
    """Yield a temporary folder that becomes `path` when the block ends and vanishes when it raises.

    The folder carries a marker with its `kind`. An existing run is moved aside, the new one moved in, then the old one
    removed: a kill leaves one of them whole. Raises what `claim` raises.
    """
    with claim(path, overwrite) as place:
        temporary = hidden(place, "tmp")
        with writing(path):
            temporary.mkdir()
        try:
            yield temporary
            write_json(temporary / MARKER, {"kind": kind, "version": VERSION})
            refuse_existing(path, overwrite)
            with writing(path):
                _move_in(temporary, place)
        except BaseException:
            remove(temporary)
            raise


def replace_folder(built: Path | str, path: Path | str, overwrite: bool = False) -> None:
    """Move a folder that was built in steps, so that a kill loses only the last, to where it appears when complete.

    Both are to be claimed by the caller. Raises what `claim` raises.
    """
    refuse_existing(path, overwrite)
    with writing(path):
        _move_in(_resolved(built), _resolved(path))


@contextlib.contextmanager
def claim(path: Path | str, overwrite: bool = False) -> Iterator[Path]:
    """Hold an output folder for the whole of a run, from before any work: yields the place it resolves to.

    Inside, `atomic_folder` on the same path is allowed as often as wanted; another process or thread is told at once.
    Raises `FolderExists` when the folder holds anything and `overwrite` is off or it is no run, `StorageError` when it
    cannot be written, `FolderInUse` when another process is writing it.
    """
    refuse_existing(path, overwrite)
    place = _resolved(path)
    if place in _CLAIMED.get():
        yield place
        return
    require_writable(path)
    with _lock(place, path):
        recover(place)
        sweep(place.parent)
        _sweep_locks(place.parent)
        refuse_existing(path, overwrite)
        token = _CLAIMED.set(_CLAIMED.get() | {place})
        try:
            yield place
        finally:
            _CLAIMED.reset(token)


def refuse_existing(path: Path | str, overwrite: bool = False) -> None:
    """Raise `FolderExists` unless `path` is free, or holds a run of this toolkit and `overwrite` is on.

    The current folder and those above it, the home folder and the root are refused whatever they hold.
    """
    place = _resolved(path)
    with writing(path):
        if why := _never(place):
            raise FolderExists(f"{str(path)!r} is {why} and is never replaced; choose a folder of its own for the run")
        if place.exists() and not place.is_dir():
            raise FolderExists(f"{str(path)!r} is a file; give a folder")
        held = sorted(os.listdir(place)) if place.is_dir() else []
    if not held:
        return
    if not overwrite:
        raise FolderExists(
            f"output folder {str(path)!r} exists; choose another (out=, --out) or pass overwrite=True (--overwrite)"
        )
    if not _is_run(place, held):
        shown = ", ".join(held[:3]) + (", ..." if len(held) > 3 else "")
        raise FolderExists(
            f"{str(path)!r} holds no run of featalign ({shown}), it is not replaced; choose another (out=, --out)"
        )


def require_writable(path: Path | str) -> None:
    """Raise `StorageError` before any work when a file or folder at `path` could not be written; leaves no trace."""
    with writing(path):
        place = _resolved(path)
        for ancestor in (place, *place.parents):
            try:
                ancestor.lstat()
            except FileNotFoundError:
                continue
            break
        folder = ancestor if ancestor.is_dir() else ancestor.parent
        if ancestor not in (place, folder):
            raise NotADirectoryError(errno.ENOTDIR, "Not a directory")
        longest = os.pathconf(folder, "PC_NAME_MAX") if hasattr(os, "pathconf") else 255
        if any(len(os.fsencode(part)) > longest for part in place.parts):
            raise OSError(errno.ENAMETOOLONG, "File name too long")
        probe = hidden(folder / "writable", "tmp")
        try:
            probe.write_bytes(bytes(4096))
        finally:
            remove(probe)


def recover(path: Path | str) -> None:
    """Undo a replacement that was killed between its two renames, and remove what a killed one left of the old run."""
    place = _resolved(path)
    for old in hidden_of(place, "old"):
        if place.exists():
            _discard(old, place)
        else:
            with writing(path):
                os.rename(old, place)


def _move_in(temporary: Path, place: Path) -> None:
    if not place.exists():
        os.rename(temporary, place)
        return
    old = hidden(place, "old")
    os.rename(place, old)
    try:
        os.rename(temporary, place)
    except BaseException:
        os.rename(old, place)
        raise
    _discard(old, place)


def _discard(old: Path, place: Path) -> None:
    """Remove an old run under a name that `recover` never takes for a whole one."""
    rubbish = hidden(place, "tmp")
    os.rename(old, rubbish)
    remove(rubbish)


def _resolved(path: Path | str) -> Path:
    with writing(path):
        return Path(path).resolve()


def _never(place: Path) -> str:
    here = Path.cwd().resolve()
    if place == Path(place.anchor):
        return "the root of the file system"
    if place == here:
        return "the current folder"
    if place in here.parents:
        return "above the current folder"
    with contextlib.suppress(RuntimeError, OSError):
        if place == Path.home().resolve():
            return "the home folder"
    if os.path.ismount(place):
        return "a mounted file system"
    return ""


def _is_run(place: Path, held: list[str]) -> bool:
    """Whether this toolkit wrote a folder: it has the marker, or the files of a run from before there was one."""
    if MARKER in held or any(files <= set(held) for files in _UNMARKED):
        return True
    files = [name for _, _, names in os.walk(place) for name in names]
    return "cfg.json" in files and set(files) <= _DICTIONARY


@contextlib.contextmanager
def _lock(place: Path, path: Path | str) -> Iterator[None]:
    """Hold the lock beside `place`; the system frees it when the process ends, however it ends."""
    file = place.parent / f".{short(place.name)}{LOCK}"
    with writing(path):
        place.parent.mkdir(parents=True, exist_ok=True)
        handle = _locked(file, path)
        os.ftruncate(handle, 0)
        os.write(handle, str(os.getpid()).encode())
    try:
        yield
    finally:
        remove(file)
        os.close(handle)


def _locked(file: Path, path: Path | str) -> int:
    """An open file with the lock on it, which nobody has removed meanwhile."""
    while True:
        handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if fcntl is None:
                return handle
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.exists(file) and os.path.samestat(os.fstat(handle), os.stat(file)):
                return handle
        except BlockingIOError:
            pid = os.read(handle, 20).decode("ascii", "replace").strip() or "unknown"
            os.close(handle)
            raise FolderInUse(
                f"{str(path)!r} is being written by another run (process {pid}); wait for it or choose another --out"
            ) from None
        except FileNotFoundError:
            pass
        except OSError:  # a file system without locks
            return handle
        os.close(handle)


def _sweep_locks(folder: Path) -> None:
    """Remove lock files that no process holds: a kill leaves them behind."""
    for file in folder.glob(f".*{LOCK}") if fcntl is not None else ():
        with contextlib.suppress(OSError):
            handle = os.open(file, os.O_RDWR)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                remove(file)
            finally:
                os.close(handle)
