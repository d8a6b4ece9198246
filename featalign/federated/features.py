"""Features over rounds: which features of the clients the aggregate holds or loses, which training brings back.

The server reads networks that it has anyway, on the public probe: nothing more leaves a client. One dictionary per
hidden space is trained on the aggregate of the first round that is looked at; every other one goes on from it, later
ones from what the same network had the last time. Latents are matched by the correlation of their codes on the probe.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from featalign.align.feature import match_features
from featalign.dictionaries.basis import NeuronBasis
from featalign.dictionaries.dictionary import Dictionary
from featalign.dictionaries.preflight import DictionaryWarning
from featalign.dictionaries.training import train_many
from featalign.errors import BadOption, ProbeError
from featalign.federated.federation import Federation
from featalign.federated.messages import Report, State
from featalign.federated.record import SERVER
from featalign.federated.result import FeatureRow, FlowRow
from featalign.spaces import canonical, trace
from featalign.spaces.capture import collect

SAMPLES, WIDTH = 1000, 256  # rows of activations and latents of a dictionary, at most
FIRST, LATER = 600, 100  # steps of training: of the first dictionary, of those that go on from another
ALIKE = 0.5  # correlation of codes from which two latents are one feature, where the null is lower
STATES = ("lost", "local", "shared")


@dataclass
class Seen:
    """A network as it was read: by hidden space its dictionary, codes `[rows, F]` and the state of every latent `[F]`.

    States are -1 for latents that never fire, otherwise places in `STATES`.
    """

    dictionaries: dict[str, Dictionary] = field(default_factory=dict)
    codes: dict[str, torch.Tensor] = field(default_factory=dict)
    states: dict[str, np.ndarray] = field(default_factory=dict)


class FeatureWatch:
    """Reads the clients' networks and the aggregate every so many rounds.

    Attributes:
        first, last: by client (and `SERVER`), as they were read the first and the last time.

    Raises `BadOption` where the federation has no probe.
    """

    def __init__(self, federation: Federation, every: int, seed: int = 0) -> None:
        if every and federation.probe is None:
            raise BadOption(
                "features are read on a public probe and the federation has none; pass probe=, or features=0"
            )
        self.federation, self.every, self.seed = federation, every, seed
        self.first: dict[str, Seen] = {}
        self.last: dict[str, Seen] = {}

    def due(self, number: int) -> bool:
        """Whether a round is looked at: the first and every so many after it."""
        return self.every > 0 and (number - 1) % self.every == 0

    def look(self, number: int, reports: Sequence[Report], weights: State) -> tuple[list[FeatureRow], list[FlowRow]]:
        """Rows of a round, from the networks that clients sent and the one that they were fused into."""
        (whole,) = self._read([weights], [SERVER], [self.last.get(SERVER)])
        names = [report.client for report in reports]
        starts = [self.last.get(name, whole) for name in names]
        seen = dict(zip(names, self._read([report.weights for report in reports], names, starts)))
        rows: list[FeatureRow] = []
        flows: Counter[tuple[str, str, str]] = Counter()
        for space in whole.codes:
            to_whole = {name: partners(each.codes[space], whole.codes[space]) for name, each in seen.items()}
            holders = np.zeros(whole.codes[space].shape[1], dtype=int)
            for found in to_whole.values():
                holders[found[found >= 0]] += 1
            for name, each in seen.items():
                each.states[space] = _states(each.codes[space], to_whole[name], holders)
                rows.append(self._row(number, name, space, each, whole, flows))
            alive = _alive(whole.codes[space])
            whole.states[space] = np.where(alive, np.minimum(holders, 2), -1)
            rows.append(self._row(number, SERVER, space, whole, whole, Counter()))
        self.last |= {SERVER: whole, **seen}
        self.first = {SERVER: whole, **seen} | self.first
        return rows, [FlowRow(number, space, a, b, count) for (space, a, b), count in flows.items()]

    def _row(
        self, number: int, name: str, space: str, seen: Seen, whole: Seen, flows: Counter[tuple[str, str, str]]
    ) -> FeatureRow:
        """Counts of one network's latents, and where those of its last reading went, added to `flows`."""
        states = seen.states[space]
        lost, local, shared = (int((states == place).sum()) for place in range(3))
        relearned = new = 0
        if name in self.last:
            before = self.last[name].states[space]
            link = partners(self.last[name].codes[space], seen.codes[space])
            linked = link[(link >= 0) & (before >= 0)]
            relearned = int(((before == 0) & (link >= 0)).sum())
            for old, partner in zip(before, link):
                if old >= 0:
                    flows[space, STATES[old], STATES[states[partner]] if partner >= 0 else "gone"] += 1
            fresh = np.setdiff1d(np.flatnonzero(states >= 0), linked)
            new = len(fresh)
            for latent in fresh:
                flows[space, "new", STATES[states[latent]]] += 1
        first = self.first.get(name, seen).codes[space]
        kept = partners(first, whole.codes[space])[_alive(first)]
        survival = float((kept >= 0).mean()) if len(kept) else float("nan")
        return FeatureRow(number, name, space, lost + local + shared, shared, local, lost, relearned, new, survival)

    def _read(self, weights: Sequence[State], names: Sequence[str], before: Sequence[Seen | None]) -> list[Seen]:
        """Dictionaries of all hidden spaces of several networks, gone on from those of `before`."""
        held = [read_spaces(self._module(state), self.federation) for state in weights]
        found = [Seen() for _ in names]
        for space, rows in held[0].items():
            starts = [None if each is None else each.dictionaries.get(space) for each in before]
            going = all(start is not None for start in starts)
            wanted: dict[str, Any] = (
                {"steps": LATER, "width": starts[0].width, "k": starts[0].k}
                if starts[0] is not None and going
                else {"steps": FIRST, "width": min(2 * rows.shape[1], WIDTH)}
            )
            facts = [{"client": name, "space": space} for name in names]
            with warnings.catch_warnings():  # dead units and narrow dictionaries are routine on a small probe
                warnings.simplefilter("ignore", DictionaryWarning)
                trained = train_many(
                    [each[space] for each in held],
                    seeds=(self.seed,),
                    metadata=facts,
                    starts=starts,
                    allow_narrow=True,
                    **wanted,
                )
            for seen, each, (dictionary,) in zip(found, held, trained):
                seen.dictionaries[space], seen.codes[space] = dictionary, dictionary.encode(each[space])
        return found

    def _module(self, weights: State) -> nn.Module:
        module = self.federation.make(0)
        module.load_state_dict(weights)
        return module.eval()

    def state(self) -> tuple[State, dict[str, Any]]:
        """What is needed to go on: tensors by name, and plain facts of the dictionaries."""
        tensors: State = {}
        facts: dict[str, Any] = {}
        for moment, held in (("first", self.first), ("last", self.last)):
            for name, seen in held.items():
                for space, codes in seen.codes.items():
                    key = f"{moment}/{name}/{space}"
                    tensors[f"{key}/codes"] = codes.contiguous()
                    tensors[f"{key}/states"] = torch.from_numpy(seen.states[space])
                    if moment == "last":
                        found = seen.dictionaries[space]
                        facts[key] = {"k": found.k, "metadata": dict(found.metadata)}
                        tensors |= {f"{key}/{part}": value.contiguous() for part, value in found.tensors.items()}
        return tensors, facts

    def restore(self, tensors: State, facts: Mapping[str, Any]) -> None:
        """Go on from `state`."""
        held: dict[str, dict[str, torch.Tensor]] = {}
        for key, value in tensors.items():
            place, _, part = key.rpartition("/")
            held.setdefault(place, {})[part] = value
        for place, parts in held.items():
            moment, name, space = place.split("/", 2)
            seen = (self.first if moment == "first" else self.last).setdefault(name, Seen())
            seen.codes[space], seen.states[space] = parts.pop("codes"), parts.pop("states").numpy()
            if place in facts:
                seen.dictionaries[space] = Dictionary("topk", parts, **facts[place])


def read_spaces(module: nn.Module, federation: Federation) -> dict[str, torch.Tensor]:
    """Post-activations of every hidden space on the probe, `[rows, units]` of at most `SAMPLES` rows."""
    assert federation.probe is not None
    example = federation.example.on(module).example
    folded = canonical(module, example).module
    spaces = [space for space in trace(folded, example).hidden if space.pre is not None]
    inputs = federation.probe.subset(slice(0, SAMPLES))
    held = collect(folded, inputs, list(dict.fromkeys(space.after for space in spaces)))
    found = {}
    for space in spaces:
        rows = held[space.after]
        found[space.name] = rows[torch.linspace(0, len(rows) - 1, min(len(rows), SAMPLES)).long()]
    return found


def partners(a: torch.Tensor, b: torch.Tensor) -> np.ndarray:
    """For codes `[rows, F]`, `[rows, G]` the latent of `b` that each of `a` is matched with, -1 for none, `[F]`."""
    found = np.full(a.shape[1], -1)
    try:
        match = match_features(NeuronBasis(a.shape[1]), NeuronBasis(b.shape[1]), [(a, b)], minimum=ALIKE)
    except ProbeError:  # nothing fires
        return found
    found[match.pairs[:, 0]] = match.pairs[:, 1]
    return found


def _alive(codes: torch.Tensor) -> np.ndarray:
    return (codes.var(0) > 0).numpy()


def _states(codes: torch.Tensor, to_whole: np.ndarray, holders: np.ndarray) -> np.ndarray:
    held = np.where(to_whole >= 0, np.minimum(holders[np.maximum(to_whole, 0)], 2), 0)
    return np.where(_alive(codes), held, -1)
