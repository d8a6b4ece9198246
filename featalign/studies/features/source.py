"""Codes of one dictionary on all inputs, in parts of whole inputs, never all of them at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from featalign.data.batch import Batch
from featalign.data.inputs import Inputs
from featalign.data.task import Task, labels_of
from featalign.dictionaries.basis import Basis
from featalign.errors import SpaceMismatch
from featalign.spaces.capture import evaluating, fitting_batch, origins_of, stream
from featalign.spaces.graph import Site

ENTRIES = 2**23  # codes held at a time


@dataclass(frozen=True)
class Part:
    """Some whole inputs with their codes.

    Attributes:
        codes: `[rows, F]`.
        input: `[rows]` the input of each row, counted from `start`, or None where that cannot be told.
        position: `[rows]` the token, or the place in a picture or signal, of each row.
        start, size: the first input and how many there are.
        tokens: `[inputs, T]`, or None; aligned: whether every token (that the mask keeps) has one row.
        labels: `[inputs]` one class each, or None.
    """

    codes: torch.Tensor
    input: torch.Tensor | None
    position: torch.Tensor | None
    start: int
    size: int
    tokens: torch.Tensor | None
    aligned: bool
    labels: torch.Tensor | None

    def window(
        self, latent: torch.Tensor, member: torch.Tensor, position: torch.Tensor, half: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and codes of a latent around positions of inputs (counted from `start`), `[m, 2 half + 1]` each.

        Outside the input and at padding tokens are -1 and codes NaN.
        """
        assert self.tokens is not None and self.input is not None and self.position is not None
        length = self.tokens.shape[1]
        at = position[:, None] + torch.arange(-half, half + 1)
        inside = (at >= 0) & (at < length)
        at, member = at.clamp(0, length - 1), member[:, None].expand_as(at)
        if not self.aligned:
            return self.tokens[member, at].where(inside, -1), torch.full(at.shape, torch.nan)
        place = torch.full((self.size, length), -1)
        place[self.input, self.position] = torch.arange(len(self.input))
        row = place[member, at].where(inside, -1)
        codes = self.codes[row.clamp_min(0), latent[:, None]]
        return self.tokens[member, at].where(row >= 0, -1), codes.where(row >= 0, torch.nan)

    def at(self, latent: torch.Tensor, member: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """Codes of a latent at positions of inputs (counted from `start`), `[m]`."""
        assert self.input is not None and self.position is not None
        length = int(self.position.max()) + 1
        place = torch.zeros(self.size, length, dtype=torch.long)
        place[self.input, self.position] = torch.arange(len(self.input))
        return self.codes[place[member, position.clamp_max(length - 1)], latent]


@dataclass(frozen=True)
class Source:
    """A dictionary on a site of a network, and the inputs that are looked through."""

    basis: Basis
    module: nn.Module
    site: Site
    inputs: Inputs
    task: Task | None = None

    def parts(self, inputs: Inputs | None = None) -> Iterator[Part]:
        """Codes of all inputs (or of others); raises `SpaceMismatch` for a dictionary of another width."""
        source = self.inputs if inputs is None else inputs
        start, latents = 0, len(self.basis.atoms)
        for batch in source.batched(fitting_batch(self.module, source, [self.site])):
            _, held = next(stream(self.module, [batch], [self.site]))
            rows = held[self.site]
            if rows.shape[1] != self.basis.atoms.shape[1]:
                raise SpaceMismatch(
                    f"dictionary of {self.basis.atoms.shape[1]} units at '{self.site}', which has {rows.shape[1]}; "
                    "pass the site that it was trained on"
                )
            where = origins_of(self.module, self.site, batch, rows, 0)
            labels = None if self.task is None else labels_of(self.task, [batch])
            if where is None:
                for some in rows.split(max(1, ENTRIES // latents)):
                    yield Part(self._codes(some), None, None, start, batch.size, None, False, None)
            else:
                yield from self._cut(batch, rows, where, labels, start)
            start += batch.size

    def _cut(
        self, batch: Batch, rows: torch.Tensor, where: torch.Tensor, labels: torch.Tensor | None, start: int
    ) -> Iterator[Part]:
        tokens = None if batch.tokens is None else batch.tokens.cpu()
        member, position = (column.contiguous() for column in where.unbind(1))
        count = len(rows) // batch.size
        aligned = tokens is not None and (batch.mask is not None or count == tokens.shape[1])
        if tokens is not None and not aligned and count % tokens.shape[1] == 0:
            position = position // (count // tokens.shape[1])  # heads: several rows for each token
        step = max(1, ENTRIES // max(1, count * len(self.basis.atoms)))
        for first in range(0, batch.size, step):
            size = min(step, batch.size - first)
            low, high = torch.searchsorted(member, torch.tensor([first, first + size])).tolist()
            yield Part(
                self._codes(rows[low:high]), member[low:high] - first, position[low:high], start + first, size,
                None if tokens is None else tokens[first : first + size], aligned,
                None if labels is None else labels[first : first + size],
            )  # fmt: skip

    def _codes(self, rows: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return self.basis.encode(rows).detach().cpu()

    def read(self, latent: torch.Tensor, inputs: torch.Tensor, position: torch.Tensor, half: int) -> torch.Tensor:
        """Codes of `latent [m]` around `position [m]` of `inputs [m]`, `[m, 2 half + 1]`; one column without tokens."""
        used, member = inputs.unique(return_inverse=True)
        order = member.argsort(stable=True)
        bounds = torch.searchsorted(member[order], torch.arange(len(used) + 1))
        found: torch.Tensor | None = None
        for part in self.parts(self.inputs.subset(used)):
            chosen = order[bounds[part.start] : bounds[part.start + part.size]]
            mine = (latent[chosen], member[chosen] - part.start, position[chosen])
            values = part.at(*mine)[:, None] if part.tokens is None else part.window(*mine, half)[1]
            found = torch.full((len(latent), values.shape[1]), torch.nan) if found is None else found
            found[chosen] = values.float()
        return torch.zeros(len(latent), 1) if found is None else found

    def outputs(self, batch: Batch) -> torch.Tensor:
        """The network's outputs on a batch."""
        from featalign.data.batch import unwrap

        with evaluating(self.module):
            return unwrap(batch.run(self.module))
