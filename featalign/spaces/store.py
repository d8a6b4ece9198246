"""Activations of one site on disk: written once by streaming, read batch by batch or by index, never held whole.

>>> store = ActivationStore.build(model, inputs, "blocks.0.hook_resid_post", "acts")
>>> fa.dictionaries.train(store, width=2048)
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from featalign import storage
from featalign.data.inputs import Inputs
from featalign.data.sources import contents
from featalign.errors import BadOption, CorruptFile, FolderExists, NotFinite, ProbeError
from featalign.spaces.capture import fitting_batch, origins_of, stream
from featalign.spaces.graph import Site
from featalign.spaces.naming import provenance, resolve_site

INDEX, KIND, VERSION = "store.json", "activations", 1
SHARD_BYTES = 64_000_000  # written, and shuffled, at a time
RESIDENT = 128_000_000  # bytes of mapped files that reading may keep in memory
OUTPUT_BYTES = 64_000_000  # of a network's outputs held at a time
PAGE = 4096
DTYPES = {"float16": np.float16, "float32": np.float32}


class ActivationStore:
    """Rows of activations `[rows, width]` in a folder, memory-mapped; indexing and batches give float32 tensors.

    Attributes:
        folder: where it lies.
        width: units; `len(store)` tells the rows.
        identity: what decides the contents: weights, site, inputs, dtype.
        inputs, padding: inputs that the rows came from, and tokens that their masks left out.
    """

    def __init__(self, folder: Path | str):
        self.folder = Path(folder)
        index = _read_index(self.folder)
        self.width, self.identity = int(index["width"]), index["identity"]
        self._facts = dict(index["provenance"])
        self.inputs, self.padding = int(index["inputs"]), int(index["padding"])
        counts = [int(shard["rows"]) for shard in index["shards"]]
        self._starts = np.concatenate([[0], np.cumsum(counts)])
        self._shards = [_mapped(self.folder, "rows", k, (count, self.width)) for k, count in enumerate(counts)]
        self._origins = [_mapped(self.folder, "origins", k, (count, 2)) for k, count in enumerate(counts)]
        self._touched = 0

    @classmethod
    def open(cls, folder: Path | str) -> ActivationStore:
        """A complete store; raises `CorruptFile` for a folder that is none, or whose building was interrupted."""
        return cls(folder)

    @classmethod
    def build(
        cls,
        module: nn.Module,
        inputs: Any,
        site: Site | str,
        folder: Path | str,
        *,
        dtype: str = "float16",
        shard_rows: int | None = None,
        tokenizer: Any = None,
        overwrite: bool = False,
        progress: bool = True,
    ) -> ActivationStore:
        """Run a network on inputs and keep every row of a site; padded tokens are left out.

        Args:
            inputs: whatever `data.Inputs` reads.
            site: hook name, module path or `Site` (see `resolve_site`).
            folder: appears when complete; a killed run goes on after its last shard when called again.
            dtype: float16 or float32 on disk.
            shard_rows: rows per file; None takes 64 MB each.

        A complete store of the same weights, site and inputs is opened as it is. Raises `FolderExists` for one of
        others unless `overwrite`, `FolderInUse` while another process writes it, `NotFinite` for values that are not
        finite or too large for float16, `ProbeError` where masks leave nothing.
        """
        if dtype not in DTYPES:
            raise BadOption(f"dtype '{dtype}'; choose from {', '.join(DTYPES)}")
        if shard_rows is not None and shard_rows < 1:
            raise BadOption(f"shard_rows = {shard_rows}; give at least 1")
        site, source = resolve_site(module, site), Inputs.of(inputs, tokenizer=tokenizer)
        facts = provenance(module, site, source)
        identity = {"weights": weights_digest(module), "site": repr(site), "inputs": source.digest, "dtype": dtype}
        place = Path(folder)
        if (place / INDEX).is_file():
            if (found := cls(place)).identity == identity:
                return found
            if not overwrite:
                raise FolderExists(
                    f"'{place}' holds activations of '{found.hook_name}' from another network, site or inputs; choose "
                    "another folder, or pass overwrite=True"
                )
        with storage.claim(place, overwrite):
            partial = place.parent / f"{place.name}.part"
            with storage.claim(partial, overwrite=True):
                _Writer(partial, identity, facts, dtype, shard_rows).run(module, source, site, progress)
                storage.replace_folder(partial, place, overwrite)
        return cls(place)

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def hook_name(self) -> str:
        """Of the site that the rows were read at."""
        return str(self._facts["hook_name"])

    @property
    def shape(self) -> tuple[int, int]:
        """`(rows, width)`."""
        return len(self), self.width

    @property
    def metadata(self) -> dict[str, Any]:
        """What a dictionary trained on the store records of it (`spaces.naming.provenance`)."""
        return dict(self._facts)

    def rows(self, index: torch.Tensor | np.ndarray | slice) -> torch.Tensor:
        """Chosen rows `[chosen, width]`, float32."""
        if isinstance(index, slice):
            index = torch.arange(*index.indices(len(self)))
        return torch.from_numpy(self._gathered(self._shards, index, self.width, np.float32))

    __getitem__ = rows

    def origins(self, index: torch.Tensor | np.ndarray | slice = slice(None)) -> torch.Tensor:
        """Where rows came from, `[chosen, 2]`: input and position; -1 where that cannot be told."""
        if isinstance(index, slice):
            index = torch.arange(*index.indices(len(self)))
        return torch.from_numpy(self._gathered(self._origins, index, 2, np.int64))

    def split(self, size: int) -> Iterator[torch.Tensor]:
        """All rows in order, `[size, units]` at a time."""
        for start in range(0, len(self), size):
            yield self.rows(slice(start, start + size))

    def batches(self, size: int, shuffle_seed: int | None = None) -> Iterator[torch.Tensor]:
        """All rows once, `[size, width]` at a time (the last batch may be smaller), in order or shuffled.

        Shuffling mixes runs of rows from all over the store in a buffer of `SHARD_BYTES`.
        """
        if shuffle_seed is None:
            yield from self.split(size)
            return
        generator = torch.Generator().manual_seed(shuffle_seed)
        capacity = max(size, SHARD_BYTES // (4 * self.width))
        run = max(1, min(256, capacity // 16))
        starts = torch.randperm(-(-len(self) // run), generator=generator) * run
        rest = torch.empty(0, self.width)
        for group in starts.split(max(1, capacity // run)):
            index = torch.cat([torch.arange(s, min(s + run, len(self))) for s in group.tolist()])
            held = torch.cat([rest, self.rows(index)])
            held = held[torch.randperm(len(held), generator=generator)]
            whole = len(held) // size * size
            yield from held[:whole].split(size)
            rest = held[whole:]
        if len(rest):
            yield rest

    def __iter__(self) -> Iterator[torch.Tensor]:
        return self.batches(4096)

    def _gathered(self, shards: list[np.ndarray], index: Any, width: int, dtype: Any) -> np.ndarray:
        """Rows of the mapped files; what reading has made resident is let go now and then."""
        chosen = np.asarray(index)
        if chosen.dtype == bool:
            chosen = chosen.nonzero()[0]
        if len(chosen) and (chosen.min() < 0 or chosen.max() >= len(self)):
            raise BadOption(f"row {int(chosen.max())} of a store of {len(self)}; give 0 to {len(self) - 1}")
        out = np.empty((len(chosen), width), dtype)
        which = np.searchsorted(self._starts, chosen, side="right") - 1
        for k in np.unique(which):
            here = which == k
            out[here] = shards[k][chosen[here] - self._starts[k]]
        self._touched += len(chosen) * max(PAGE, out.nbytes // max(1, len(chosen)))
        if self._touched > RESIDENT:
            for shard in (*self._shards, *self._origins):
                _release(shard)
            self._touched = 0
        return out

    def __repr__(self) -> str:
        return f"ActivationStore({len(self)} rows of {self.width} units at '{self.hook_name}', {self.inputs} inputs)"


def weights_digest(module: nn.Module) -> str:
    """Sixteen hexadecimal digits that identify a network's class and weights."""
    found = hashlib.sha256(type(module).__name__.encode())
    for name, tensor in module.state_dict().items():
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(contents(tensor.detach().cpu()))
    return found.hexdigest()[:16]


class _Writer:
    """A store in the making: shards on disk, and an index of those that are whole."""

    def __init__(
        self, folder: Path, identity: Mapping[str, str], origin: Mapping[str, Any], dtype: str, shard_rows: int | None
    ):
        self.folder, self.dtype, self.shard_rows = folder, DTYPES[dtype], shard_rows
        self.facts: dict[str, Any] = {"identity": dict(identity), "provenance": dict(origin), "shards": []}
        self.facts |= {"version": VERSION, "width": 0, "inputs": 0, "padding": 0}
        known = storage.read_json(folder / INDEX) if (folder / INDEX).is_file() else {}
        if known.get("identity") == identity and known.get("version") == VERSION:
            self.facts = known
        storage.write_json(folder / storage.MARKER, {"kind": KIND, "version": VERSION})
        self.parts: list[np.ndarray] = []
        self.places: list[np.ndarray] = []
        self.held = 0

    def run(self, module: nn.Module, source: Inputs, site: Site, progress: bool) -> None:
        """Write what is missing."""
        from tqdm.auto import tqdm

        size, capacity = self._sizes(module, source, site)
        start, padding = int(self.facts["inputs"]), int(self.facts["padding"])
        hook = self.facts["provenance"]["hook_name"]
        bar = tqdm(total=source.samples, initial=start, disable=not progress, desc=hook)
        rest = source.subset(slice(start, None)) if source.sized and start < len(source) else source
        seen = start if source.sized else 0
        for batch in rest.batched(size) if not (source.sized and start >= len(source)) else ():
            seen += batch.size
            if seen <= start:  # a loader that cannot be cut: these batches are in shards already
                continue
            _, held = next(stream(module, [batch], [site], size))
            rows, first = held[site], seen - batch.size
            self._add(rows, origins_of(module, site, batch, rows, first))
            padding += 0 if batch.mask is None else int((~batch.mask).sum())
            bar.update(batch.size)
            if self.held >= capacity:
                self._flush(seen, padding)
        if self.held:
            self._flush(seen, padding)
        bar.close()
        if not self.facts["shards"]:
            raise ProbeError("masks leave no token of the inputs: there is nothing to store; check attention_mask")

    def _sizes(self, module: nn.Module, source: Inputs, site: Site) -> tuple[int, int]:
        """Inputs per batch, so that activations, outputs (logits of large vocabularies) and shards stay small, and rows
        per shard.
        """
        example = source.example(1)
        outputs, held = next(stream(module, [example], [site]))
        count, width = held[site].shape
        capacity = self.shard_rows or max(1, SHARD_BYTES // (width * np.dtype(self.dtype).itemsize))
        fitting = (
            fitting_batch(module, source, [site]) // 4
        )  # what the network holds meanwhile takes several times more
        limits = (fitting, OUTPUT_BYTES // outputs.nbytes, capacity // max(1, count))
        return max(1, min(limits)), capacity

    def _add(self, rows: torch.Tensor, places: torch.Tensor | None) -> None:
        if len(rows) == 0:
            return
        with np.errstate(over="ignore"):
            part = rows.cpu().numpy().astype(self.dtype)
        if not np.isfinite(part).all():
            largest = float(rows.abs().max())
            raise NotFinite(f"activations up to {largest:.3g} do not fit float16; pass dtype='float32'")
        missing = np.full((len(rows), 2), -1)
        self.parts.append(part)
        self.places.append((missing if places is None else places.numpy()).astype(np.int32))
        self.held += len(part)

    def _flush(self, inputs: int, padding: int) -> None:
        """Write a shard; it counts once the index names it."""
        k = len(self.facts["shards"])
        rows = np.concatenate(self.parts)
        for name, array in (("rows", rows), ("origins", np.concatenate(self.places))):
            file = _file(self.folder, name, k)
            with storage.writing(file):
                temporary = file.with_suffix(".tmp")
                with temporary.open("wb") as handle:
                    np.save(handle, array)
                os.replace(temporary, file)
        shards = [*self.facts["shards"], {"rows": len(rows)}]
        self.facts |= {"shards": shards, "inputs": inputs, "padding": padding, "width": rows.shape[1]}
        storage.write_json(self.folder / INDEX, self.facts)
        self.parts, self.places, self.held = [], [], 0


def _file(folder: Path, name: str, k: int) -> Path:
    return folder / f"{name}-{k:05d}.npy"


def _read_index(folder: Path) -> dict[str, Any]:
    if not (folder / INDEX).is_file():
        if (folder.parent / f"{folder.name}.part" / INDEX).is_file():
            raise CorruptFile(f"'{folder}' is not complete: build it again with the same arguments and it goes on")
        raise CorruptFile(f"'{folder}' holds no activations ({INDEX}); build them with ActivationStore.build")
    index = storage.read_json(folder / INDEX)
    if not isinstance(index, dict) or index.get("version") != VERSION:
        raise CorruptFile(f"'{folder / INDEX}' is no index of activations that is known here; build them again")
    return index


def _mapped(folder: Path, name: str, k: int, shape: tuple[int, int]) -> np.ndarray:
    file = _file(folder, name, k)
    try:
        found = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise CorruptFile(f"'{file}' cannot be read ({error}); delete the folder and build it again") from error
    if found.shape != shape:
        raise CorruptFile(f"'{file}' holds {found.shape}, the index says {shape}; delete the folder and build it again")
    return found


def _release(array: np.ndarray) -> None:
    """Let go of the memory of a mapped file; its pages stay in the system's cache."""
    import mmap

    held = getattr(array, "_mmap", None)
    if held is not None and hasattr(mmap, "MADV_DONTNEED"):
        held.madvise(mmap.MADV_DONTNEED)
