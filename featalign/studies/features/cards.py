"""Feature cards: what every latent of a dictionary is about, streamed over all inputs.

Per latent: how often and how strongly it fires, a histogram of its activations, the contexts that drive it most and a
few ordinary ones, profiles over positions and classes, what it does to the outputs, and the nearest atoms. The model is
the feature dashboard of SAEDashboard and Neuronpedia.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from featalign.data.inputs import Inputs
from featalign.data.task import Task
from featalign.dictionaries.basis import as_basis
from featalign.errors import DictionaryError
from featalign.spaces.graph import Site
from featalign.studies.features.effects import Effect, effect_of
from featalign.studies.features.pictures import Columns, columns_of, is_picture
from featalign.studies.features.running import Best, Tally
from featalign.studies.features.source import Part, Source

if TYPE_CHECKING:
    import pandas as pd

LOWER, DRAWN = 4, 16  # contexts of ordinary strength that are shown, of so many drawn at random
CONTEXT = {"characters": 28, "words": 12}  # tokens shown on each side of one
NEIGHBOURS = 5


@dataclass(frozen=True)
class Contexts:
    """Places where latents fire, `[F, K]` of each; `value` is -inf where there are fewer.

    Attributes:
        value: the activation; input, position: where.
        tokens: `[F, K, W]` ids around the position, which is in the middle; -1 outside the input and at padding.
        acts: `[F, K, W]` the activation of the same latent at every token, NaN where there is none.
    """

    value: torch.Tensor
    input: torch.Tensor
    position: torch.Tensor
    tokens: torch.Tensor
    acts: torch.Tensor

    @classmethod
    def of(cls, best: Best, value: torch.Tensor | None = None) -> Contexts:
        """What was kept."""
        names = ("input", "position", "tokens", "acts")
        return cls(best.key if value is None else value, *(best.fields[name] for name in names))

    def take(self, place: torch.Tensor) -> Contexts:
        """Chosen contexts `[F, k]` of every latent."""
        rows = torch.arange(len(self.value))[:, None]
        return Contexts(*(part[rows, place] for part in vars(self).values()))


@dataclass(frozen=True)
class FeatureCards:
    """Cards of the latents of one dictionary on some inputs; arrays are by latent.

    Attributes:
        source: the dictionary, the network, the site and the inputs.
        rows, inputs: how many were looked through.
        counts: `[F]` rows on which a latent fires; mean: `[F]` of its activation where it fires; max: `[F]`.
        energy: `[F]` mean square of the activation times the squared norm of the atom.
        histogram: `[F, BINS]` rows by activation, see `running.bin_edges`; it sums to `counts`.
        positions: `[F, POSITIONS]` mean activation by bin of the position, NaN where there are no rows; or None.
        classes: `[F, C]` mean activation by class, or None.
        top: contexts of largest activation, from different inputs; lower: of ordinary strength, drawn at random and
            shown at the quantiles of what was drawn.
        effect: what latents do to the outputs, or None; columns: what is unusual about the inputs, or None.
        neighbours, cosines: `[F, 5]` nearest atoms that fire.
        tokenizer, class_names: names of tokens and classes.
    """

    source: Source
    rows: int
    inputs: int
    counts: torch.Tensor
    mean: torch.Tensor
    max: torch.Tensor
    energy: torch.Tensor
    histogram: torch.Tensor
    positions: torch.Tensor | None
    classes: torch.Tensor | None
    top: Contexts
    lower: Contexts
    neighbours: torch.Tensor
    cosines: torch.Tensor
    effect: Effect | None = None
    columns: Columns | None = None
    tokenizer: Any = None
    class_names: tuple[str, ...] = ()

    @property
    def density(self) -> torch.Tensor:
        """`[F]` share of the rows on which a latent fires."""
        return self.counts.double() / max(self.rows, 1)

    @property
    def alive(self) -> torch.Tensor:
        """The latents that fire at all."""
        return torch.nonzero(self.counts > 0).flatten()

    @property
    def atoms(self) -> torch.Tensor:
        """`[F, units]`."""
        return self.source.basis.atoms.detach()

    @property
    def half(self) -> int:
        """Tokens on each side of a context's middle."""
        return self.top.tokens.shape[2] // 2

    @cached_property
    def vocabulary(self) -> list[str]:
        """Text of the token ids that the cards show, by id; ids without a tokenizer."""
        shown = [int(tokens.max()) for tokens in (self.top.tokens, self.lower.tokens) if tokens.numel()]
        largest = -1 if self.effect is None else self.effect.largest
        return token_names(self.tokenizer, max([largest, *shown]) + 1)

    def token(self, identifier: int) -> str:
        """Text of one token."""
        return self.vocabulary[identifier] if identifier >= 0 else ""

    def text(self, latent: int, place: int = 0) -> str:
        """A context as text with the maximal token in double square brackets."""
        parts = [self.token(t) for t in self.top.tokens[latent, place].tolist()]
        parts[self.half] = f"[[{parts[self.half]}]]"
        return "".join(parts)

    def to_frame(self) -> pd.DataFrame:
        """One row per latent: density, mean, max, energy, and the text or the input that drives it most."""
        import pandas as pd

        frame = pd.DataFrame({
            "latent": range(len(self.counts)), "density": self.density.numpy(), "mean": self.mean.numpy(),
            "max": self.max.numpy(), "energy": self.energy.numpy(), "input": self.top.input[:, 0].numpy(),
        })  # fmt: skip
        if self.top.tokens.shape[2]:
            frame["context"] = [self.text(j) if self.counts[j] else "" for j in range(len(frame))]
        return frame


def feature_cards(
    basis: Any,
    module: nn.Module,
    site: Site | str,
    inputs: Any,
    *,
    task: Task | None = None,
    tokenizer: Any = None,
    contexts: int = 8,
    window: int | None = None,
    effects: bool = True,
    seed: int = 0,
) -> FeatureCards:
    """Cards of every latent of a dictionary, in one pass over the inputs.

    Args:
        basis: whatever `as_basis` reads; a latent fires where its code is positive.
        module, site: the network, and where the dictionary reads it; a name stands for a submodule's output.
        inputs: whatever `data.Inputs` reads; targets give class profiles where the task has classes.
        task: for labels and names of classes; tokenizer: its `decode` gives tokens their text.
        contexts: shown per latent, each from another input.
        window: tokens shown on each side; None takes 12, or 28 where tokens are single characters.
        effects: whether to measure what latents do to the outputs.
        seed: of the ordinary contexts, which are drawn.

    Memory: a batch of codes, and per latent some 200 numbers for every context. Raises `SpaceMismatch` for a
    dictionary that does not fit the site, `DictionaryError` for fewer than one context.
    """
    if contexts < 1 or (window is not None and window < 0):
        raise DictionaryError(f"contexts={contexts}, window={window}; pass at least one context and no negative window")
    site = Site(site) if isinstance(site, str) else site
    source = Source(as_basis(basis), module, site, Inputs.of(inputs, tokenizer=tokenizer), task)
    running = _Running(source, contexts, _half(source.inputs, tokenizer, window), seed)
    for part in source.parts():
        running.update(part)
    cards = running.cards(tokenizer, tuple(task.class_names) if task is not None else ())
    cards = replace(cards, columns=columns_of(cards.source, cards.top))
    if not effects:
        return cards
    return replace(cards, effect=effect_of(source, cards.lower, cards.energy, cards.class_names))


def _half(inputs: Inputs, tokenizer: Any, window: int | None) -> int:
    """Tokens on each side of one; 0 where inputs are no tokens."""
    ids = inputs.example(8).tokens
    if ids is None:
        return 0
    if window is not None:
        return min(window, ids.shape[1] - 1)
    names = [token_names(tokenizer, int(ids.max()) + 1)[t] for t in ids.flatten()[:500].tolist()]
    single = callable(getattr(tokenizer, "decode", None)) and sum(map(len, names)) < 1.6 * len(names)
    return min(CONTEXT["characters" if single else "words"], ids.shape[1] - 1)


def _pictures(inputs: Inputs) -> bool:
    example = inputs.example(1)
    return example.tokens is None and is_picture(example.tensors[0][0])


def token_names(tokenizer: Any, count: int) -> list[str]:
    """Text of the token ids below `count`; a tokenizer without `decode`, or none, gives the ids."""
    decode = getattr(tokenizer, "decode", None)
    if not callable(decode):
        return [f" {k}" for k in range(count)]
    return [str(decode([k])) for k in range(count)]


class _Running:
    """What is kept of the parts."""

    def __init__(self, source: Source, contexts: int, half: int, seed: int):
        latents, width = len(source.basis.atoms), 2 * half + 1 if source.inputs.example(1).tokens is not None else 0
        fields = {
            "input": ((), torch.long), "position": ((), torch.int32), "tokens": ((width,), torch.int32),
            "acts": ((width,), torch.float32),
        }  # fmt: skip
        self.source, self.half = source, half
        self.tally = Tally(latents)
        self.squares = torch.zeros(latents, dtype=torch.double)
        self.top = Best(latents, contexts, fields)
        self.drawn = Best(latents, DRAWN, {**fields, "value": ((), torch.float32)})
        self.draw = torch.Generator().manual_seed(seed)
        self.inputs = 0

    def update(self, part: Part) -> None:
        """Add some inputs."""
        self.inputs = max(self.inputs, part.start + part.size)
        row, latent = (part.codes > 0).nonzero(as_tuple=True)
        value = part.codes[row, latent]
        self.tally.update(latent, value, len(part.codes))
        self.squares += torch.bincount(latent, value.double().square(), minlength=len(self.squares))
        if part.input is None or part.position is None:
            return
        member, position = part.input[row], part.position[row]
        self.tally.add_positions(position, latent, value, part.position)
        if part.labels is not None:
            labels = part.labels
            self.tally.add_classes(labels[member], latent, value, labels[part.input])
        key = torch.rand(len(value), generator=self.draw)
        self._offer(self.drawn, part, self.drawn.candidates(latent, key), key, (latent, member, position, value))
        chosen = self.top.candidates(latent, value)
        chosen = chosen[_largest(member[chosen] * len(self.squares) + latent[chosen], value[chosen])]
        self._offer(self.top, part, chosen, value, (latent, member, position, value))

    def _offer(
        self, best: Best, part: Part, chosen: torch.Tensor, key: torch.Tensor, entries: tuple[torch.Tensor, ...]
    ) -> None:
        latent, member, position, value = (entry[chosen] for entry in entries)

        def make(kept: torch.Tensor) -> dict[str, torch.Tensor]:
            fields = {"input": member[kept] + part.start, "position": position[kept], "value": value[kept]}
            if part.tokens is not None:
                where = (latent[kept], member[kept], position[kept])
                fields["tokens"], fields["acts"] = part.window(*where, self.half)
                fields["acts"][:, self.half] = value[kept]
            return {name: fields[name] for name in best.fields if name in fields}

        best.update(latent, key[chosen], make)

    def cards(self, tokenizer: Any, class_names: tuple[str, ...]) -> FeatureCards:
        """The cards of all that was added."""
        tally, atoms = self.tally, self.source.basis.atoms.detach()
        value = self.drawn.fields["value"].where(self.drawn.key > -torch.inf, -torch.inf)
        order = value.argsort(dim=1, descending=True, stable=True)
        count = (value > -torch.inf).sum(1)
        share = torch.linspace(0.25, 1, LOWER)
        place = (share * (count - 1).clamp_min(0)[:, None]).round().long()
        fewer = torch.arange(LOWER) >= count[:, None]
        lower = Contexts.of(self.drawn, value).take(order.gather(1, place))
        lower = replace(lower, value=lower.value.masked_fill(fewer, -torch.inf))
        positions = classes = None
        if not _pictures(self.source.inputs) and len(torch.nonzero(tally.places)) > 1:
            positions = tally.position / tally.places.where(tally.places > 0, torch.nan)
        if len(tally.members):
            classes = tally.profile / tally.members.clamp_min(1)
            names = tuple(map(str, class_names[: len(tally.members)]))
            class_names = names + tuple(str(k) for k in range(len(names), len(tally.members)))
        neighbours, cosines = _neighbours(atoms, tally.counts > 0)
        return FeatureCards(
            self.source, tally.rows, self.inputs, tally.counts, (tally.sums / tally.counts.clamp_min(1)).float(),
            tally.maxima, (self.squares / max(tally.rows, 1) * atoms.cpu().double().square().sum(1)).float(),
            tally.histogram, positions, classes, Contexts.of(self.top), lower, neighbours, cosines,
            tokenizer=tokenizer, class_names=class_names,
        )  # fmt: skip


def _largest(group: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """The place of the largest value in each group, the first of equal ones."""
    order = value.argsort(descending=True, stable=True)
    order = order[group[order].argsort(stable=True)]
    if len(order) == 0:
        return order
    first = torch.ones(len(order), dtype=torch.bool)
    first[1:] = group[order][1:] != group[order][:-1]
    return order[first]


def _neighbours(atoms: torch.Tensor, alive: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`[F, 5]` nearest atoms that fire by cosine, and the cosines; -1 and NaN where there are fewer."""
    unit = torch.nn.functional.normalize(atoms.cpu().float(), dim=1)
    known = torch.nonzero(alive).flatten()
    index = torch.full((len(unit), NEIGHBOURS), -1)
    cosine = torch.full((len(unit), NEIGHBOURS), torch.nan)
    count = min(NEIGHBOURS, len(known) - 1)
    if count < 1:
        return index, cosine
    for rows in known.split(1024):
        similar = unit[rows] @ unit[known].T
        similar[rows[:, None] == known] = -torch.inf
        best = similar.topk(count, dim=1)
        index[rows, :count], cosine[rows, :count] = known[best.indices], best.values
    return index, cosine
