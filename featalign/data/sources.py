"""Where batches come from: tensors and arrays that can be cut, or a loader that somebody else wrote."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from featalign.data.batch import Batch
from featalign.errors import ProbeError

TARGETS = ("labels", "label", "targets")  # keys of a mapping that hold what outputs are compared with


@dataclass(frozen=True)
class Slices:
    """Tensors and arrays that are cut along their first dimension."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    targets: Any = None

    def length(self) -> int:
        values = [*self.args, *self.kwargs.values()]
        if any(getattr(value, "ndim", 1) == 0 for value in values if hasattr(value, "shape")):
            raise ProbeError("an argument is a single number; pass tensors [samples, ...]")
        lengths = {len(value) for value in values if hasattr(value, "__len__")}
        if len(lengths) != 1:
            raise ProbeError(f"arguments of {sorted(lengths)} samples; pass tensors of equal first dimension")
        count = lengths.pop()
        if getattr(self.targets, "ndim", 1) == 0:
            raise ProbeError("the targets are a single number; pass one target per input")
        if self.targets is not None and hasattr(self.targets, "__len__") and len(self.targets) != count:
            raise ProbeError(f"{count} inputs and {len(self.targets)} targets; pass one target per input")
        return int(count)

    def batches(self, size: int, seed: int | None = None) -> Iterator[Batch]:
        for start in range(0, self.length(), size):
            yield self._at(slice(start, start + size)).batch()

    def take(self, index: Any) -> Slices:
        return self._at(index)

    def batch(self) -> Batch:
        tensors = tuple(as_tensor(value) for value in self.args)
        targets = np.asarray(self.targets) if hasattr(self.targets, "to_numpy") else self.targets
        if isinstance(targets, np.ndarray) and targets.dtype.kind in "biuf":
            targets = as_tensor(targets)
        return Batch(tensors, {key: as_tensor(value) for key, value in self.kwargs.items()}, targets)

    def _at(self, index: Any) -> Slices:
        def cut(value: Any) -> Any:
            if isinstance(index, torch.Tensor) and isinstance(value, torch.Tensor):
                return value[index.to(value.device)]
            if isinstance(index, torch.Tensor) and isinstance(value, np.ndarray):
                return value[index.numpy()]
            if isinstance(index, torch.Tensor) and isinstance(value, (list, tuple)):
                return [value[i] for i in index.tolist()]
            return value[index] if hasattr(value, "__getitem__") else value

        targets = None if self.targets is None else cut(self.targets)
        return Slices(tuple(map(cut, self.args)), {key: cut(value) for key, value in self.kwargs.items()}, targets)


class Loader:
    """Batches that somebody else makes; the last item of a tuple holds the targets."""

    def __init__(self, loader: Iterable[Any]):
        self.loader = loader
        self.seen: list[str] = []  # fingerprints of the batches of the first pass
        sources = (loader, getattr(loader, "sampler", None))
        found = {id(g): g for s in sources if isinstance(g := getattr(s, "generator", None), torch.Generator)}
        self.generators = [(generator, generator.get_state()) for generator in found.values()]

    def batches(self, size: int, seed: int | None = None) -> Iterator[Batch]:
        """Batches of one pass: the same each time, or (with a seed) as it comes."""
        for k, item in enumerate(self._items(seed)):
            batch = self._batch(item)
            if seed is None:
                self._compare(k, batch)
            yield batch

    def count(self) -> int:
        """Batches of one pass."""
        if isinstance(self.loader, Sized):
            return len(self.loader)
        return sum(1 for _ in self._items(0))

    def _items(self, seed: int | None) -> Iterator[Any]:
        """Items of the loader, with random numbers of this pass's own, whatever a consumer draws in between."""
        own = torch.Generator().manual_seed(seed or 0).get_state()
        for generator, state in self.generators:
            generator.set_state(state) if seed is None else generator.manual_seed(seed)
        items: Iterator[Any] | None = None
        while True:
            with torch.random.fork_rng(devices=[]):
                torch.set_rng_state(own)
                items = iter(self.loader) if items is None else items
                try:
                    item = next(items)
                except StopIteration:
                    return
                own = torch.get_rng_state()
            yield item

    def _batch(self, item: Any) -> Batch:
        if isinstance(item, Batch):
            return item
        if isinstance(item, Mapping):
            found = next((item[key] for key in TARGETS if key in item), None)
            kwargs = {key: as_tensor(value) for key, value in item.items() if key not in TARGETS and not is_text(value)}
            return Batch((), kwargs, None if found is None else as_tensor(found))
        if isinstance(item, (tuple, list)):
            *args, targets = item if len(item) > 1 else (*item, None)
            return Batch(tuple(as_tensor(value) for value in args), {}, as_tensor(targets))
        return Batch((as_tensor(item),))

    def _compare(self, place: int, batch: Batch) -> None:
        found = hashlib.blake2b(digest_size=8)
        for tensor in batch.tensors:
            found.update(contents(tensor.detach().cpu().contiguous()))
        if place == len(self.seen):
            self.seen.append(found.hexdigest())
        elif self.seen[place] != found.hexdigest():
            raise ProbeError(
                f"batch {place} of the loader is another one than on the first pass, so clients would not see the same "
                "samples; pass shuffle=False, or Inputs.of(loader).gathered(), which reads it once"
            )


def contents(values: torch.Tensor) -> bytes:
    """Contents of a tensor of any dtype and strides."""
    plain = values.reshape(-1).clone(memory_format=torch.contiguous_format)
    return plain.view(torch.uint8).numpy().tobytes() if values.numel() else b""


def is_text(value: Any) -> bool:
    """Strings, which no network takes; loaders hand them on beside their tokens."""
    return isinstance(value, str) or (isinstance(value, (list, tuple)) and bool(value) and isinstance(value[0], str))


def as_tensor(value: Any) -> Any:
    """Arrays as tensors; read-only memory (mapped files) is copied batch by batch."""
    if not isinstance(value, np.ndarray):
        return value
    try:
        return torch.from_numpy(np.array(value, dtype=value.dtype.newbyteorder("=")))
    except TypeError:
        raise ProbeError(f"an array of {value.dtype} {list(value.shape)}; pass numbers (float, int or bool)") from None


def joined(parts: Sequence[Any]) -> Any:
    """Targets of several batches: tensors joined, names in one list."""
    if is_text(parts[0]):
        return [name for part in parts for name in part]
    return torch.cat([torch.as_tensor(part) for part in parts])


def collated(samples: list[Any]) -> Any:
    """Samples of a data set as one batch: lists of numbers within mappings become tensors first."""

    def ready(value: Any) -> Any:
        numeric = isinstance(value, list) and value and not isinstance(value[0], (str, Mapping))
        return torch.as_tensor(value) if numeric else value

    whole = [{key: ready(value) for key, value in s.items()} if isinstance(s, Mapping) else s for s in samples]
    try:
        return torch.utils.data.default_collate(whole)
    except (RuntimeError, TypeError) as error:
        raise ProbeError(
            f"samples of the data set do not make one batch ({str(error).splitlines()[0]}); pad them to one length, or "
            "pass a DataLoader with a collate_fn"
        ) from None
