"""What cards need of all rows, kept while they stream: counts, histograms, profiles, and the strongest entries."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

PER_OCTAVE, LOWEST, BINS = (
    4,
    -80,
    160,
)  # bins of the histogram: 2^(b/4) for b from -80, a million-fold below and above 1
POSITIONS = 16  # bins of the position profile: 0, 1, 2-3, 4-7, 8-15, ...
Make = Callable[[torch.Tensor], Mapping[str, torch.Tensor]]


class Best:
    """Per latent the entries of largest key, largest first, each with its fields `[F, count, ...]`.

    Empty places have key -inf. Of equal keys the first that came stays.
    """

    def __init__(self, latents: int, count: int, fields: Mapping[str, tuple[tuple[int, ...], torch.dtype]]):
        self.count = count
        self.key = torch.full((latents, count), -torch.inf)
        self.fields = {name: torch.zeros(latents, count, *tail, dtype=kind) for name, (tail, kind) in fields.items()}

    def candidates(self, latent: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        """Places in a list of entries that would get in."""
        return torch.nonzero(key > self.key[latent, -1]).flatten()

    def update(self, latent: torch.Tensor, key: torch.Tensor, make: Make) -> None:
        """Offer entries; `make` gives the fields of those (places in the list) that get in."""
        if len(latent) == 0:
            return
        order = key.argsort(descending=True, stable=True)
        order = order[latent[order].argsort(stable=True)]
        touched, group, sizes = latent[order].unique_consecutive(return_inverse=True, return_counts=True)
        rank = torch.arange(len(order)) - (sizes.cumsum(0) - sizes)[group]
        first = rank < self.count
        order, group, rank = order[first], group[first], rank[first]
        new = torch.full((len(touched), self.count), -torch.inf)
        new[group, rank] = key[order].float()
        joined = torch.cat([self.key[touched], new], 1)
        joined, place = (part[:, : self.count] for part in joined.sort(dim=1, descending=True, stable=True))
        self.key[touched] = joined
        for name, values in make(order).items():
            kept = self.fields[name]
            offered = torch.zeros(len(touched), self.count, *kept.shape[2:], dtype=kept.dtype)
            offered[group, rank] = values.to(kept.dtype)
            both = torch.cat([kept[touched], offered], 1)
            kept[touched] = both[torch.arange(len(touched))[:, None], place]


class Tally:
    """Counts, sums, maxima, histograms and profiles of `latents` codes, row by row.

    Attributes:
        rows: so far; counts `[F]`: rows on which a latent fires (its code is positive).
        sums, maxima: `[F]` of its positive codes.
        histogram: `[F, BINS]` of its positive codes.
        places, position: `[POSITIONS]` rows and `[F, POSITIONS]` sums by bin of the position.
        members, profile: `[C]` rows and `[F, C]` sums by class.
    """

    def __init__(self, latents: int):
        self.latents, self.rows = latents, 0
        self.counts = torch.zeros(latents, dtype=torch.long)
        self.sums = torch.zeros(latents, dtype=torch.double)
        self.maxima = torch.zeros(latents)
        self.histogram = torch.zeros(latents, BINS, dtype=torch.int32)
        self.places = torch.zeros(POSITIONS, dtype=torch.double)
        self.position = torch.zeros(latents, POSITIONS, dtype=torch.double)
        self.members = torch.zeros(0, dtype=torch.double)
        self.profile = torch.zeros(latents, 0, dtype=torch.double)

    def update(self, latent: torch.Tensor, value: torch.Tensor, rows: int) -> None:
        """Positive codes of `rows` rows as a list: latents `[e]` and their values `[e]`."""
        self.rows += rows
        self.counts += torch.bincount(latent, minlength=self.latents)
        self.sums += torch.bincount(latent, value.double(), minlength=self.latents)
        self.maxima.scatter_reduce_(0, latent, value.float(), "amax")
        cell = latent * BINS + bins_of(value)
        self.histogram.view(-1).scatter_add_(0, cell, torch.ones(len(cell), dtype=torch.int32))

    def add_positions(
        self, position: torch.Tensor, latent: torch.Tensor, value: torch.Tensor, every: torch.Tensor
    ) -> None:
        """The same entries with the position of each, and the positions of all rows."""
        self.places += torch.bincount(position_bin(every), minlength=POSITIONS)
        cell = latent * POSITIONS + position_bin(position)
        self.position.view(-1).scatter_add_(0, cell, value.double())

    def add_classes(self, label: torch.Tensor, latent: torch.Tensor, value: torch.Tensor, every: torch.Tensor) -> None:
        """The same entries with the class of each, and the classes of all rows; negative ones are left out."""
        classes = max(len(self.members), int(every.max()) + 1) if len(every) else len(self.members)
        if classes > len(self.members):
            more = classes - len(self.members)
            self.members = torch.nn.functional.pad(self.members, (0, more))
            self.profile = torch.nn.functional.pad(self.profile, (0, more))
        self.members += torch.bincount(every[every >= 0], minlength=classes)
        known = label >= 0
        cell = latent[known] * classes + label[known]
        self.profile.view(-1).scatter_add_(0, cell, value[known].double())


def bins_of(value: torch.Tensor) -> torch.Tensor:
    """The bin of each positive value; bin b holds `2^((LOWEST + b) / PER_OCTAVE)` and what follows up to the next."""
    return (value.double().log2() * PER_OCTAVE).floor().long().sub(LOWEST).clamp(0, BINS - 1)


def bin_edges() -> torch.Tensor:
    """`[BINS + 1]` edges of the histogram."""
    return 2.0 ** ((LOWEST + torch.arange(BINS + 1, dtype=torch.double)) / PER_OCTAVE)


def position_bin(position: torch.Tensor) -> torch.Tensor:
    """Bins that double: 0, 1, 2-3, 4-7, ..."""
    return (position.double() + 0.5).log2().floor().long().add(1).clamp(0, POSITIONS - 1)


def position_names(count: int) -> list[str]:
    """The positions of each of the first `count` bins, as a page shows them."""
    spans = [(0, 0), *((2**k, 2 ** (k + 1) - 1) for k in range(count - 1))]
    return [str(low) if low == high else f"{low}–{high}" for low, high in spans]
