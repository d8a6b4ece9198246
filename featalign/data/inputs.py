"""`Inputs`: whatever a user calls a probe or a test set, as re-iterable batches of a module's arguments.

A tensor, an array (also memory-mapped), a tuple of tensors, a mapping (`input_ids`, `attention_mask`, `labels`), a list
of strings with a tokenizer, a `DataLoader`, a data set. Nothing is gathered: batches are cut, moved and cast in turn.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import nn

from featalign.errors import ProbeError

TARGETS = ("labels", "label", "targets")  # keys of a mapping that hold what outputs are compared with
OUTPUTS = ("logits", "prediction_logits", "last_hidden_state", "sample")  # fields that hold a model's output
BATCH = 2048


@dataclass(frozen=True)
class Batch:
    """Arguments of one call of a module, and what its outputs are compared with.

    Attributes:
        args, kwargs: positional and keyword arguments; tensors have the samples first.
        targets: of these samples, or None.
    """

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    targets: Any = None

    @property
    def tensors(self) -> list[torch.Tensor]:
        """The tensors among the arguments."""
        return [value for value in (*self.args, *self.kwargs.values()) if isinstance(value, torch.Tensor)]

    @property
    def size(self) -> int:
        """Samples."""
        return len(self.tensors[0])

    @property
    def mask(self) -> torch.Tensor | None:
        """`attention_mask [samples, tokens]` as booleans, where there is one."""
        mask = self.kwargs.get("attention_mask")
        return None if mask is None else mask.bool()

    @property
    def tokens(self) -> torch.Tensor | None:
        """Token ids `[samples, tokens]`: `input_ids`, or the one integer argument."""
        ids = self.kwargs.get("input_ids", self.args[0] if self.args else None)
        return ids if isinstance(ids, torch.Tensor) and not ids.is_floating_point() and ids.dim() == 2 else None

    @property
    def example(self) -> Any:
        """The arguments as tracing takes them: a tensor, a tuple, or a mapping of keyword arguments."""
        if self.kwargs and not self.args:
            return dict(self.kwargs)
        return self.args[0] if len(self.args) == 1 else self.args

    def cut(self, count: int) -> Batch:
        """The first `count` samples."""
        return self.map(lambda tensor: tensor[:count])

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        """The batch with `change` applied to every tensor of arguments and targets."""

        def each(value: Any) -> Any:
            return change(value) if isinstance(value, torch.Tensor) else value

        kwargs = {key: each(value) for key, value in self.kwargs.items()}
        return Batch(tuple(each(value) for value in self.args), kwargs, each(self.targets))

    def run(self, module: nn.Module) -> Any:
        """`module(*args, **kwargs)` on the module's device; floating-point arguments follow its dtype."""
        parameter = next((p for p in module.parameters() if p.is_floating_point()), None)
        if parameter is None:
            return module(*self.args, **self.kwargs)
        device, dtype = parameter.device, parameter.dtype
        ready = self.map(lambda t: t.to(device, dtype) if t.is_floating_point() else t.to(device))
        return module(*ready.args, **ready.kwargs)


def unwrap(outputs: Any) -> torch.Tensor:
    """The output tensor of a module: itself, `.logits` (or another known field), or the first tensor of a tuple.

    Raises `ProbeError` for an object that names no output.
    """
    if isinstance(outputs, torch.Tensor):
        return outputs
    for name in OUTPUTS:
        found = outputs.get(name) if isinstance(outputs, Mapping) else getattr(outputs, name, None)
        if isinstance(found, torch.Tensor):
            return found
    if isinstance(outputs, Mapping):
        outputs = tuple(outputs.values())
    elif dataclasses.is_dataclass(outputs) or hasattr(outputs, "__dict__"):
        outputs = tuple(vars(outputs).values())
    if isinstance(outputs, (tuple, list)):
        for item in outputs:
            if isinstance(item, torch.Tensor):
                return item
    raise ProbeError(
        f"a module returned {type(outputs).__name__}, in which no tensor and no `.logits` was found; wrap it in a "
        "module that returns the output tensor"
    )


class Inputs:
    """Re-iterable batches of a module's arguments; see the module's docstring for what it is made from.

    Attributes:
        samples: how many, or None where a loader does not tell.
        batch_size: samples per batch; a loader's batches are what they are.
    """

    def __init__(self, source: Any, samples: int | None, batch_size: int = BATCH):
        self._source, self.samples, self.batch_size = source, samples, batch_size
        if samples == 0:
            raise ProbeError("the probe set is empty; pass a tensor [samples, ...] or a loader with at least one batch")

    @classmethod
    def of(
        cls, source: Any, targets: Any = None, tokenizer: Any = None, batch_size: int = BATCH, labelled: bool = False
    ) -> Inputs:
        """Read a source.

        Args:
            source: see the module's docstring; an `Inputs` is returned as it is.
            targets: `[samples, ...]`, of sources that do not bring theirs.
            tokenizer: turns a list of strings into a mapping of tensors (`transformers` calling convention).
            labelled: whether the last item of a tuple (or of a loader's tuples) holds the targets.

        Raises `ProbeError` for empty sources, one-shot iterators and types that nothing is known about.
        """
        if isinstance(source, Inputs):
            return source
        if isinstance(source, str) or (isinstance(source, Sequence) and source and isinstance(source[0], str)):
            return cls.of(_tokenised(source, tokenizer), targets, batch_size=batch_size)
        if isinstance(source, (torch.Tensor, np.ndarray)):
            return cls(_Slices((source,), {}, targets), len(source), batch_size)
        if isinstance(source, Mapping):
            kwargs = {key: value for key, value in source.items() if key not in TARGETS}
            found = next((source[key] for key in TARGETS if key in source), None)
            slices = _Slices((), kwargs, found if targets is None else targets)
            return cls(slices, slices.length(), batch_size)
        if isinstance(source, tuple) and source and all(isinstance(s, (torch.Tensor, np.ndarray)) for s in source):
            args, found = (source[:-1], source[-1]) if labelled and len(source) > 1 else (source, targets)
            slices = _Slices(args, {}, found)
            return cls(slices, slices.length(), batch_size)
        if labelled and isinstance(source, (tuple, list)) and len(source) == 2:
            return cls.of(source[0], source[1], tokenizer, batch_size)
        if isinstance(source, Iterator):
            raise ProbeError(
                f"a {type(source).__name__} can be read once only, and a probe is read many times; pass a DataLoader, "
                "a list of batches or a tensor"
            )
        if hasattr(source, "__getitem__") and hasattr(source, "__len__") and not isinstance(source, (list, tuple)):
            if len(source) == 0:
                raise ProbeError("the data set is empty; pass one with at least one sample")
            loader = torch.utils.data.DataLoader(source, batch_size=min(batch_size, 256))
            return cls(_Loader(loader, labelled), len(source), batch_size)
        if isinstance(source, Iterable):
            data = getattr(source, "dataset", None)
            known = len(data) if data is not None and hasattr(data, "__len__") else None
            return cls(_Loader(source, labelled), known, batch_size)
        raise ProbeError(
            f"inputs of type {type(source).__name__}; pass a tensor [samples, ...], an array, a mapping of tensors, a "
            "DataLoader, or strings with a tokenizer"
        )

    def __iter__(self) -> Iterator[Batch]:
        empty = True
        for batch in self._source.batches(self.batch_size):
            empty = False
            yield batch
        if empty:
            raise ProbeError("the inputs gave no batch; pass a loader that can be iterated again and is not empty")

    def __len__(self) -> int:
        if self.samples is None:
            self.samples = sum(batch.size for batch in self)
        return self.samples

    def batched(self, size: int) -> Inputs:
        """The same inputs in batches of another size (a loader keeps its own)."""
        return Inputs(self._source, self.samples, max(1, size))

    @property
    def sized(self) -> bool:
        """Whether batches can be cut at will (tensors, arrays and mappings of them; not loaders)."""
        return isinstance(self._source, _Slices)

    def example(self, samples: int = 2) -> Batch:
        """The first samples as one batch."""
        return next(iter(self.batched(samples) if self.sized else self)).cut(samples)

    def subset(self, index: torch.Tensor | slice) -> Inputs:
        """Chosen samples, of sources that can be cut; loaders are gathered first."""
        source = self._source if self.sized else self.gathered()._source
        chosen = source.take(index)
        return Inputs(chosen, chosen.length(), self.batch_size)

    def sample(self, count: int, seed: int = 0) -> Inputs:
        """At most `count` samples, drawn without replacement."""
        if len(self) <= count:
            return self
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        return self.subset(order[:count])

    def gathered(self) -> Inputs:
        """The same inputs held as tensors; for loaders that are read in random order."""
        if self.sized:
            return self
        batches = list(self)
        args = tuple(torch.cat(parts) for parts in zip(*(batch.args for batch in batches)))
        kwargs = {key: torch.cat([batch.kwargs[key] for batch in batches]) for key in batches[0].kwargs}
        targets = None
        if batches[0].targets is not None:
            targets = torch.cat([torch.as_tensor(batch.targets) for batch in batches])
        slices = _Slices(args, kwargs, targets)
        return Inputs(slices, slices.length(), self.batch_size)

    @cached_property
    def tensor(self) -> torch.Tensor | None:
        """The one argument `[samples, ...]`, where the module takes one tensor that is held in memory."""
        if not self.sized or len(self._source.args) != 1 or self._source.kwargs:
            return None
        return torch.as_tensor(self._source.args[0])

    @property
    def targets(self) -> Any:
        """All targets, or None."""
        if self.sized:
            return self._source.targets
        return self.gathered()._source.targets

    def with_targets(self, targets: Any) -> Inputs:
        """The same inputs with targets."""
        source = self.gathered()._source
        return Inputs(_Slices(source.args, source.kwargs, targets), self.samples, self.batch_size)

    @cached_property
    def digest(self) -> str:
        """Sixteen hexadecimal digits that identify the contents (targets left out)."""
        found = hashlib.sha256()
        for batch in self:
            for tensor in batch.tensors:
                values = tensor.detach().cpu().contiguous()
                found.update(str((values.dtype, tuple(values.shape[1:]))).encode())
                found.update(values.view(torch.uint8).numpy().tobytes() if values.numel() else b"")
        return found.hexdigest()[:16]

    def __repr__(self) -> str:
        shapes = [str(list(tensor.shape[1:])) for tensor in self.example(1).tensors]
        count = "?" if self.samples is None else self.samples
        return f"Inputs({count} samples of {', '.join(shapes)})"


@dataclass(frozen=True)
class _Slices:
    """Tensors and arrays that are cut along their first dimension."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    targets: Any = None

    def length(self) -> int:
        values = [*self.args, *self.kwargs.values()]
        lengths = {len(value) for value in values if hasattr(value, "__len__")}
        if len(lengths) != 1:
            raise ProbeError(f"arguments of {sorted(lengths)} samples; pass tensors of equal first dimension")
        count = lengths.pop()
        if self.targets is not None and hasattr(self.targets, "__len__") and len(self.targets) != count:
            raise ProbeError(f"{count} inputs and {len(self.targets)} targets; pass one target per input")
        return int(count)

    def batches(self, size: int) -> Iterator[Batch]:
        for start in range(0, self.length(), size):
            yield self._at(slice(start, start + size)).batch()

    def take(self, index: Any) -> _Slices:
        return self._at(index)

    def batch(self) -> Batch:
        tensors = tuple(_tensor(value) for value in self.args)
        targets = self.targets
        if isinstance(targets, np.ndarray) and targets.dtype.kind in "biuf":
            targets = _tensor(targets)
        return Batch(tensors, {key: _tensor(value) for key, value in self.kwargs.items()}, targets)

    def _at(self, index: Any) -> _Slices:
        def cut(value: Any) -> Any:
            if isinstance(index, torch.Tensor) and isinstance(value, np.ndarray):
                return value[index.numpy()]
            if isinstance(index, torch.Tensor) and isinstance(value, (list, tuple)):
                return [value[i] for i in index.tolist()]
            return value[index] if hasattr(value, "__getitem__") else value

        targets = None if self.targets is None else cut(self.targets)
        return _Slices(tuple(map(cut, self.args)), {key: cut(value) for key, value in self.kwargs.items()}, targets)


@dataclass(frozen=True)
class _Loader:
    """Batches that somebody else makes; tuples are arguments followed (where labelled) by targets."""

    loader: Iterable[Any]
    labelled: bool

    def batches(self, size: int) -> Iterator[Batch]:
        for item in self.loader:
            if isinstance(item, Batch):
                yield item
            elif isinstance(item, Mapping):
                found = next((item[key] for key in TARGETS if key in item), None)
                kwargs = {key: _tensor(value) for key, value in item.items() if key not in TARGETS}
                yield Batch((), kwargs, None if found is None else _tensor(found))
            elif isinstance(item, (tuple, list)):
                yield Batch((_tensor(item[0]),), {}, _tensor(item[1]) if len(item) > 1 else None)
            else:
                yield Batch((_tensor(item),))


def _tensor(value: Any) -> Any:
    """Arrays and numbers as tensors; read-only memory (mapped files) is copied batch by batch."""
    if isinstance(value, np.ndarray):
        return torch.from_numpy(np.array(value))
    return value


def _tokenised(texts: str | Sequence[str], tokenizer: Any) -> Mapping[str, torch.Tensor]:
    if tokenizer is None:
        raise ProbeError("strings need a tokenizer: pass tokenizer= (a `transformers` tokenizer or a function)")
    found = [texts] if isinstance(texts, str) else list(texts)
    try:
        encoded = tokenizer(found, return_tensors="pt", padding=True, truncation=True)
    except TypeError:  # a plain function of the texts
        encoded = tokenizer(found)
    return {"input_ids": encoded} if isinstance(encoded, torch.Tensor) else dict(encoded)
