"""`Inputs`: whatever a user calls a probe or a test set, as re-iterable batches of a module's arguments.

A tensor, an array (also memory-mapped), a tuple of tensors, a mapping (`input_ids`, `attention_mask`, `labels`), a list
of strings with a tokenizer, a `DataLoader`, a data set. Nothing is gathered: batches are cut, moved and cast in turn.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader

from featalign.data.batch import Batch
from featalign.data.sources import TARGETS, Loader, Slices, collated, contents, joined
from featalign.errors import ProbeError

BATCH = 2048
EXHAUSTED = "the inputs gave no batch; pass a loader that can be iterated again and is not empty"


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
            tokenizer: turns a list of strings into a mapping of tensors (`transformers` calling convention), or is a
                function from the list to a tensor.
            labelled: whether the last item of a tuple holds the targets. Of a loader's tuples it always does.

        Loaders that shuffle or augment are read with torch's random numbers started alike on each pass, so that every
        client sees the same batches; one that still gives others raises `ProbeError` (`gathered()` reads it once).

        Raises `ProbeError` for empty sources, one-shot iterators and types that nothing is known about.
        """
        if isinstance(source, Inputs):
            return source if targets is None else source.with_targets(targets)
        if isinstance(source, str) or (isinstance(source, Sequence) and source and isinstance(source[0], str)):
            return cls.of(_tokenised(source, tokenizer), targets, batch_size=batch_size)
        if isinstance(source, (torch.Tensor, np.ndarray)):
            slices = Slices((source,), {}, targets)
            return cls(slices, slices.length(), batch_size)
        if isinstance(source, Mapping):
            kwargs = {key: value for key, value in source.items() if key not in TARGETS}
            found = next((source[key] for key in TARGETS if key in source), None)
            slices = Slices((), kwargs, found if targets is None else targets)
            return cls(slices, slices.length(), batch_size)
        if isinstance(source, tuple) and source and all(isinstance(s, (torch.Tensor, np.ndarray)) for s in source):
            args, found = (source[:-1], source[-1]) if labelled and len(source) > 1 else (source, targets)
            slices = Slices(args, {}, found)
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
            loader = DataLoader(source, batch_size=min(batch_size, 256), collate_fn=collated)
            found = cls(Loader(loader), len(source), batch_size)
            return found if targets is None else found.with_targets(targets)
        if isinstance(source, Iterable):
            found = cls(Loader(source), _samples(source), batch_size)
            return found if targets is None else found.with_targets(targets)
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
            raise ProbeError(EXHAUSTED)

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
        return isinstance(self._source, Slices)

    def example(self, samples: int = 2) -> Batch:
        """The first samples as one batch."""
        return next(iter(self.batched(samples) if self.sized else self)).cut(samples)

    def batches(self, batch_size: int) -> int:
        """Batches of one `epoch`; raises `ProbeError` for a loader of unknown length that gives none."""
        if self.sized:
            return -(-len(self) // batch_size)
        return self._source.count()

    def epoch(self, batch_size: int, generator: torch.Generator) -> Iterator[Batch]:
        """One pass in random order, for training: drawn anew on each call; a loader gives its own batches."""
        if not self.sized:
            yield from self._source.batches(batch_size, int(torch.randint(2**31, (), generator=generator)))
            return
        for chosen in torch.randperm(len(self), generator=generator).split(batch_size):
            yield self._source.take(chosen).batch()

    def subset(self, index: torch.Tensor | slice) -> Inputs:
        """The samples of an index `[chosen]` or slice, of sources that can be cut; loaders are gathered first."""
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
        """The same inputs held as tensors, for loaders read in random order; raises `ProbeError` for none."""
        if self.sized:
            return self
        batches = list(self._source.batches(self.batch_size, 0))
        if not batches:
            raise ProbeError(EXHAUSTED)
        args = tuple(torch.cat(parts) for parts in zip(*(batch.args for batch in batches)))
        kwargs = {key: torch.cat([batch.kwargs[key] for batch in batches]) for key in batches[0].kwargs}
        targets = None
        if batches[0].targets is not None:
            targets = joined([batch.targets for batch in batches])
        slices = Slices(args, kwargs, targets)
        return Inputs(slices, slices.length(), self.batch_size)

    @cached_property
    def tensor(self) -> torch.Tensor | None:
        """The one argument `[samples, ...]`, where the module takes one tensor that is held in memory."""
        if not self.sized or len(self._source.args) != 1 or self._source.kwargs:
            return None
        return None if isinstance(self._source.args[0], np.memmap) else torch.as_tensor(self._source.args[0])

    @property
    def targets(self) -> Any:
        """All targets, or None."""
        if self.sized:
            return self._source.targets
        return self.gathered()._source.targets

    def with_targets(self, targets: Any) -> Inputs:
        """The same inputs with targets."""
        source = self.gathered()._source
        slices = Slices(source.args, source.kwargs, targets)
        return Inputs(slices, slices.length(), self.batch_size)

    @cached_property
    def digest(self) -> str:
        """Sixteen hexadecimal digits that identify the contents, however they are cut (targets left out)."""
        found: dict[Any, Any] = {}
        for batch in self:
            for key, value in (*enumerate(batch.args), *batch.kwargs.items()):
                if not isinstance(value, torch.Tensor):
                    continue
                values = value.detach().cpu().contiguous()
                if key not in found:
                    found[key] = hashlib.sha256(str((key, values.dtype, tuple(values.shape[1:]))).encode())
                found[key].update(contents(values))
        return hashlib.sha256("".join(part.hexdigest() for part in found.values()).encode()).hexdigest()[:16]

    def __repr__(self) -> str:
        shapes = [str(list(tensor.shape[1:])) for tensor in self.example(1).tensors]
        count = "?" if self.samples is None else self.samples
        return f"Inputs({count} samples of {', '.join(shapes)})"


def _samples(loader: Iterable[Any]) -> int | None:
    """Samples of a plain `DataLoader`; None where batches may leave some out or nobody knows."""
    if not isinstance(loader, DataLoader) or loader.drop_last or type(loader.batch_sampler) is not BatchSampler:
        return None
    try:
        return len(loader.sampler)  # type: ignore[arg-type]
    except TypeError:
        return None


def _tokenised(texts: str | Sequence[str], tokenizer: Any) -> Mapping[str, torch.Tensor]:
    if tokenizer is None:
        raise ProbeError("strings need a tokenizer: pass tokenizer= (a `transformers` tokenizer or a function)")
    found = [texts] if isinstance(texts, str) else list(texts)
    try:
        encoded = tokenizer(found, return_tensors="pt", padding=True, truncation=True)
    except TypeError:  # a plain function of the texts
        encoded = tokenizer(found)
    except ValueError as error:
        raise ProbeError(
            f"the tokenizer failed ({str(error).splitlines()[0]}); does it have a padding token "
            "(tokenizer.pad_token = tokenizer.eos_token)?"
        ) from error
    if not isinstance(encoded, (torch.Tensor, Mapping)):
        raise ProbeError(f"the tokenizer returned a {type(encoded).__name__}; it must return a tensor or a mapping")
    return {"input_ids": encoded} if isinstance(encoded, torch.Tensor) else dict(encoded)
