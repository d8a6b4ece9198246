"""Rows of the browser's shards: everything that the card of one feature shows, as small whole numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from featalign.report.pack import Strings
from featalign.studies.features.cards import Contexts, FeatureCards
from featalign.studies.features.effects import logits_of
from featalign.studies.features.running import LOWEST
from featalign.studies.features.words import column_name

CLASSES = 12  # classes of a profile that are shown, those of largest share
LEVELS = 255


@dataclass
class Beside:
    """The best partner of every latent of one client, and its codes in this client's contexts.

    Attributes:
        client: `[F]` names, empty where there is none; latent: `[F]`.
        acts: `[F, K, W]` relative to the partner's maximum, in the top contexts and then the lower ones.
    """

    client: list[str]
    latent: torch.Tensor
    acts: torch.Tensor
    cards: FeatureCards = field(repr=False)

    @classmethod
    def empty(cls, cards: FeatureCards) -> Beside:
        """No partners yet."""
        latents, count, width = cards.top.tokens.shape
        acts = torch.zeros(latents, count + cards.lower.value.shape[1], max(1, width))
        return cls([""] * latents, torch.full((latents,), -1), acts, cards)

    def read(self, client: str, theirs: FeatureCards, links: torch.Tensor) -> None:
        """Partners `links [m, 2]` (own latent, theirs) of one other client."""
        own, other = links.unbind(1)
        for j in own.tolist():
            self.client[j] = client
        self.latent[own] = other
        value, inputs, position = (
            torch.cat([getattr(self.cards.top, name)[own], getattr(self.cards.lower, name)[own]], 1)
            for name in ("value", "input", "position")
        )
        known = torch.nonzero(value > -torch.inf)
        if not len(known) or theirs.half != self.cards.half:
            return
        row, place = known.unbind(1)
        where = (inputs[row, place], position[row, place].long())
        codes = theirs.source.read(other[row], *where, self.cards.half)
        scale = theirs.max[other[row]].clamp_min(1e-30)
        self.acts[own[row], place] = (codes / scale[:, None]).nan_to_num(0).clamp(0, 1)


def feature_rows(
    card: FeatureCards,
    strings: Strings,
    beside: Beside | None,
    clients: Sequence[str],
    columns: Sequence[str],
    known: torch.Tensor | None,
) -> list[Any]:
    """One row per latent, null where it never fires.

    A row: histogram `[first bin, bars]`, position profile, classes `[[class, share]]`, outputs raised and lowered
    `[[string, value]]`, neighbours `[[latent, cosine]]`, columns `[[string, deviation]]`, the partner `[client,
    latent]` and contexts `[kind, input, position, value, middle, tokens, acts, the partner's acts]`. Bars,
    shares and acts are 0 to 255; only inputs of `known` pictures have contexts.
    """
    table = np.zeros(0, dtype=np.int64)
    if card.top.tokens.shape[2] and len(card.alive):
        shown = torch.cat([card.top.tokens.flatten(), card.lower.tokens.flatten()]).unique()
        names = card.vocabulary
        table = np.zeros(int(shown.max()) + 2, dtype=np.int64)
        for token in shown[shown >= 0].tolist():
            table[token] = strings.add(names[token])
    seen = None if known is None else set(known.tolist())
    alive = set(card.alive.tolist())
    return [
        _row(card, j, strings, table, beside, clients, columns, seen) if j in alive else None
        for j in range(len(card.counts))
    ]


def _row(
    card: FeatureCards,
    j: int,
    strings: Strings,
    table: np.ndarray,
    beside: Beside | None,
    clients: Sequence[str],
    columns: Sequence[str],
    seen: set[int] | None,
) -> list[Any]:
    effect: Mapping[str, list[Any]] = {"raised": [], "lowered": []}
    if card.effect is not None:
        effect = logits_of(card.effect, j, card.token)
    unusual = []
    if card.columns is not None:
        pairs = zip(card.columns.index[j].tolist(), card.columns.deviation[j].tolist())
        unusual = [[strings.add(column_name(columns, i)), _short(z)] for i, z in pairs if i >= 0]
    partner = None
    if beside is not None and beside.client[j]:
        partner = [clients.index(beside.client[j]), int(beside.latent[j])]
    near = zip(card.neighbours[j].tolist(), card.cosines[j].tolist())
    acts = beside.acts[j] if beside is not None and partner is not None else None
    split = card.top.value.shape[1]
    return [
        _bars(card.histogram[j]), _positions(card, j), _profile(card, j),
        [[strings.add(name), _short(v)] for name, v in effect["raised"]],
        [[strings.add(name), _short(v)] for name, v in effect["lowered"]],
        [[i, _short(c)] for i, c in near if i >= 0], unusual, partner,
        [
            *_contexts(0, card.top, j, float(card.max[j]), table, seen, None if acts is None else acts[:split]),
            *_contexts(1, card.lower, j, float(card.max[j]), table, seen, None if acts is None else acts[split:]),
        ],
    ]  # fmt: skip


def _contexts(
    kind: int,
    found: Contexts,
    j: int,
    top: float,
    table: np.ndarray,
    seen: set[int] | None,
    beside: torch.Tensor | None,
) -> list[Any]:
    rows = []
    values, inputs, positions = found.value[j].tolist(), found.input[j].tolist(), found.position[j].tolist()
    for k, value in enumerate(values):
        if value == float("-inf") or (seen is not None and inputs[k] not in seen):
            continue
        tokens, acts, middle = found.tokens[j, k].numpy(), found.acts[j, k], found.tokens.shape[2] // 2
        inside = np.flatnonzero(tokens >= 0)
        low, high = (int(inside[0]), int(inside[-1]) + 1) if len(inside) else (0, 0)
        own = _levels(acts[low:high] / max(top, 1e-30)) if len(table) else []
        theirs = None if beside is None else _levels(beside[k, low:high] if len(table) else beside[k])
        words = table[tokens[low:high]].tolist() if len(table) else []
        rows.append([kind, inputs[k], positions[k], _short(value), middle - low, words, own, theirs])
    return rows


def _levels(shares: torch.Tensor) -> list[int]:
    return (LEVELS * shares.nan_to_num(0).clamp(0, 1)).round().to(torch.uint8).tolist()


def _bars(counts: torch.Tensor) -> list[Any]:
    filled = torch.nonzero(counts).flatten()
    low, high = int(filled[0]), int(filled[-1]) + 1
    return [low + LOWEST, counts[low:high].tolist()]


def _positions(card: FeatureCards, j: int) -> list[int | None]:
    if card.positions is None:
        return []
    values = card.positions[j]
    last = int(torch.nonzero(card.positions[0].isfinite()).flatten()[-1]) + 1
    share = values[:last] / values[:last].nan_to_num(0).max().clamp_min(1e-30)
    return [None if np.isnan(v) else round(LEVELS * v) for v in share.tolist()]


def _profile(card: FeatureCards, j: int) -> list[list[int]]:
    if card.classes is None or not card.classes.shape[1]:
        return []
    share = card.classes[j] / card.classes[j].sum().clamp_min(1e-30)
    chosen = share.topk(min(CLASSES, len(share))).indices.sort().values
    return [[int(c), round(LEVELS * float(share[c]))] for c in chosen]


def _short(value: float) -> float:
    return float(f"{value:.3g}")
