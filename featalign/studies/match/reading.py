"""Activations of all clients side by side, batch by batch, and what is kept of them: codes, quality, a sample."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.sparse
import torch

from featalign.data.inputs import Inputs
from featalign.data.text import Stream
from featalign.dictionaries import Basis
from featalign.errors import BadOption, ProbeError, SpaceMismatch
from featalign.spaces.capture import fitting_batch, stream
from featalign.spaces.moments import Moments
from featalign.studies.match.subjects import Subject, reads
from featalign.transport.codes import Codes, sparse_rows

ENTRIES = 2**23  # codes that are dense for a moment
SAMPLE = 20_000  # rows that are kept as they are, for controls and the witness
RECONSTRUCTED = 50_000  # rows on which reconstructions are measured
CONTEXT = 128  # tokens per window of one long text, where the network allows as many
Step = list[dict[str, torch.Tensor]]  # of every client, rows by label


class NetworkRows:
    """Rows of the networks of all clients on the same inputs; iterated as often as wanted."""

    def __init__(self, subjects: Sequence[Subject], inputs: Inputs) -> None:
        self.subjects, self.inputs = subjects, inputs
        first = subjects[0]
        assert first.model is not None
        self.size = fitting_batch(first.model, inputs, list(first.sites.values()))
        self._per_input = 0.0

    def __iter__(self) -> Iterator[Step]:
        for batch in self.inputs.batched(self.size):
            seen: dict[tuple[int, Any], torch.Tensor] = {}
            step: Step = []
            for subject in self.subjects:
                assert subject.model is not None
                missing = [site for site in subject.sites.values() if (id(subject.model), site) not in seen]
                if missing:
                    _, held = next(stream(subject.model, [batch], missing))
                    seen |= {(id(subject.model), site): rows for site, rows in held.items()}
                step.append({label: seen[id(subject.model), site] for label, site in subject.sites.items()})
            yield _aligned(step, self.subjects)

    @property
    def rows(self) -> int | None:
        """About how many rows there are."""
        if self.inputs.samples is None:
            return None
        step = next(iter(self))
        return round(len(next(iter(step[0].values()))) / min(self.size, len(self.inputs)) * len(self.inputs))


class GivenRows:
    """Rows of activations that were given: for all clients alike, or one source for each."""

    def __init__(self, subjects: Sequence[Subject], sources: Sequence[Any]) -> None:
        self.subjects, self.sources = subjects, sources

    def __iter__(self) -> Iterator[Step]:
        shared = all(source is self.sources[0] for source in self.sources)
        streams = [_batches(source) for source in (self.sources[:1] if shared else self.sources)]
        for batch in zip(*streams, strict=False):
            parts = list(batch) * len(self.subjects) if shared else list(batch)
            yield _aligned([{next(iter(s.bases)): rows} for s, rows in zip(self.subjects, parts)], self.subjects)

    @property
    def rows(self) -> int | None:
        """How many rows there are, where the source tells."""
        first = self.sources[0]
        return int(np.prod(first.shape[:-1])) if hasattr(first, "shape") else None


def _batches(source: Any, size: int = 4096) -> Iterator[torch.Tensor]:
    if not isinstance(source, (torch.Tensor, np.ndarray)):
        for part in source:
            yield torch.as_tensor(part).reshape(-1, part.shape[-1])
        return
    flat = source.reshape(-1, source.shape[-1])
    for start in range(0, len(flat), size):
        yield torch.as_tensor(np.asarray(flat[start : start + size])).float()


def _aligned(step: Step, subjects: Sequence[Subject]) -> Step:
    """Raise `SpaceMismatch` unless all clients have as many rows, each as wide as its basis reads."""
    for label in step[0]:
        counts = [len(rows[label]) for rows in step]
        if len(set(counts)) > 1:
            raise SpaceMismatch(
                f"'{label}' gives {' and '.join(map(str, dict.fromkeys(counts)))} rows in different clients; rows must "
                "correspond: use the same tokens and sites of one kind"
            )
        for subject, rows in zip(subjects, step):
            basis = subject.bases.get(label)
            if basis is not None and rows[label].shape[1] != reads(basis):
                raise SpaceMismatch(
                    f"the dictionary of '{subject.name}' reads {reads(basis)} units, and '{label}' gives "
                    f"{rows[label].shape[1]}; give the dictionary of that site"
                )
    return step


def rows_of(subjects: Sequence[Subject], inputs: Any, tokenizer: Any) -> NetworkRows | GivenRows:
    """Where rows come from: the clients' networks on any `Inputs`, or activations as they are."""
    if subjects[0].model is not None:
        return NetworkRows(subjects, inputs_of(inputs, tokenizer, subjects[0].model))
    if isinstance(inputs, str) or (isinstance(inputs, (list, tuple)) and inputs and isinstance(inputs[0], str)):
        raise BadOption("inputs are texts: give models= to read them with, and tokenizer=")
    if isinstance(inputs, Mapping):
        missing = [subject.name for subject in subjects if subject.name not in inputs]
        if missing:
            raise BadOption(f"no activations for '{missing[0]}'; inputs has: {', '.join(map(str, inputs))}")
        return GivenRows(subjects, [inputs[subject.name] for subject in subjects])
    if isinstance(inputs, (list, tuple)):
        if len(inputs) != len(subjects):
            raise BadOption(f"{len(inputs)} sets of activations for {len(subjects)} bases; give one for each")
        return GivenRows(subjects, list(inputs))
    if not isinstance(inputs, (torch.Tensor, np.ndarray)) and (
        isinstance(inputs, Iterator) or not isinstance(inputs, Iterable)
    ):
        raise BadOption(
            f"inputs of type {type(inputs).__name__}; without models give activations [rows, units] that can be read "
            "more than once"
        )
    return GivenRows(subjects, [inputs] * len(subjects))


def inputs_of(inputs: Any, tokenizer: Any, model: Any) -> Inputs:
    """Any `Inputs`; one long text becomes windows of the network's context (of 128 tokens at most)."""
    if not isinstance(inputs, str):
        return Inputs.of(inputs, tokenizer=tokenizer, labelled=isinstance(inputs, tuple))
    if tokenizer is None:
        raise ProbeError("strings need a tokenizer: pass tokenizer= (a `transformers` tokenizer or a function)")
    found = tokenizer([inputs])
    ids = found["input_ids"] if isinstance(found, Mapping) or hasattr(found, "keys") else found
    config = getattr(model, "cfg", None) or getattr(model, "config", None)
    longest = getattr(config, "n_ctx", None) or getattr(config, "max_position_embeddings", None) or CONTEXT
    return Stream(torch.as_tensor(ids[0]).long(), min(int(longest), CONTEXT), batch_size=64)


@dataclass
class Reading:
    """What is kept of one client at one label.

    Attributes:
        basis: that the codes are of.
        parts: codes of the batches read so far, sparse; kept: rows as they are, the same ones for all clients.
        error: squared error of the reconstruction of some rows; spread: their moments.
        gathered: all codes, once they were asked for.
    """

    basis: Basis
    parts: list[scipy.sparse.csr_array] = field(default_factory=list)
    kept: list[torch.Tensor] = field(default_factory=list)
    error: float = 0.0
    spread: Moments = field(default_factory=Moments)
    gathered: Codes | None = None

    def update(self, rows: torch.Tensor, stride: int, kept: int) -> None:
        """Add a batch: all codes; reconstruction of every `stride`-th row; every `kept`-th row as it is."""
        chunk = max(64, ENTRIES // max(1, len(self.basis.atoms)))
        self.parts += [sparse_rows(self.basis.encode(part)) for part in rows.split(chunk)]
        some = rows[::stride]
        for part in some.split(chunk):
            rebuilt = self.basis.decode(self.basis.encode(part)).to(part)
            if rebuilt.shape == part.shape:  # a transcoder writes another site
                self.error += float((part - rebuilt).double().pow(2).sum())
                self.spread.update(part)
        if sum(map(len, self.kept)) < SAMPLE:
            self.kept.append(rows[::kept].cpu().clone())

    @property
    def codes(self) -> Codes:
        """The codes of all rows."""
        if self.gathered is None:
            self.gathered, self.parts = Codes.gathered(self.parts), []
        return self.gathered

    @property
    def sample(self) -> torch.Tensor:
        """`[at most SAMPLE, units]`."""
        return torch.cat(self.kept)[:SAMPLE]

    @property
    def explained_variance(self) -> float:
        """Of the reconstructed rows, pooled; NaN where nothing was reconstructed."""
        total = float(self.spread.squares.sum()) if self.spread.count else 0.0
        return 1 - self.error / total if total > 0 else float("nan")


def read(subjects: Sequence[Subject], source: NetworkRows | GivenRows, progress: bool) -> list[dict[str, Reading]]:
    """Read all rows once, of every client by label; raises `ProbeError` where there is no row."""
    from tqdm.auto import tqdm

    found = [{label: Reading(basis) for label, basis in subject.bases.items()} for subject in subjects]
    total = source.rows or 0
    stride, kept = max(1, total // RECONSTRUCTED), max(1, -(-total // SAMPLE))
    count = 0
    for step in tqdm(source, disable=not progress, desc="reading"):
        for client, rows in zip(found, step):
            for label, reading in client.items():
                reading.update(rows[label], stride, kept)
        count += len(next(iter(step[0].values())))
    if count == 0:
        raise ProbeError("the inputs give no row of activations: is every token masked?")
    return found
