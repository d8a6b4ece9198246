"""What the page's feature browser reads: an index of all features, and shards with what their cards show.

The index (numbers in base64, one string table for tokens and words) lists, sorts, filters, searches and maps all
features; shards are compressed JSON of a few hundred features each, opened when one of them is looked at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from featalign.errors import SpaceMismatch
from featalign.report.pack import Strings, numbers, shard
from featalign.studies.features.cards import FeatureCards
from featalign.studies.features.frames import KINDS, PAIR_KINDS
from featalign.studies.features.layout import Link, layout
from featalign.studies.features.pictures import is_picture, patches_of, thumbnail_limit, thumbnails
from featalign.studies.features.shards import Beside, feature_rows
from featalign.studies.features.words import words_of

SHARD = 256  # features
NO_CLASS = 65535
Key = tuple[str, str]  # client and site


def browser_content(
    cards: Mapping[Key, FeatureCards],
    pairs: pd.DataFrame,
    features: pd.DataFrame,
    *,
    nouns: Mapping[str, str] | None = None,
    columns: Sequence[str] = (),
    terms: Mapping[tuple[str, str], Mapping[str, str]] | None = None,
    method: str = "auto",
) -> dict[str, Any]:
    """The content of the widget `features`, for one page or for `FeatureBrowser` in a notebook.

    Args:
        cards: by (client, site), in the order of the page.
        pairs: columns of `frames.PairRow`; features: columns of `frames.LatentRow`.
        nouns: what a feature of a client is called, "latent" unless said; columns: names of the columns of a table.
        terms: by two clients, what columns of `pairs` are called: `{("A", "B"): {"score": "cosine of the atoms"}}`.
        method: of the map, see `layout`.

    Raises `SpaceMismatch` for pairs or features of clients, sites or latents that have no cards.
    """
    _check(cards, pairs, features)
    clients, sites = (list(dict.fromkeys(key[k] for key in cards)) for k in (0, 1))
    strings, classes = Strings(), _classes(cards.values())
    best = _best_partners(cards, pairs)
    content: dict[str, Any] = {
        "version": 1, "clients": clients, "sites": sites, "kinds": list(KINDS), "pair_kinds": list(PAIR_KINDS),
        "nouns": [str((nouns or {}).get(client, "latent")) for client in clients], "classes": classes,
        "per": SHARD, "blocks": [], "shards": [],
    }  # fmt: skip
    places = _places(cards, pairs, method)
    groups = _groups(cards)
    kept = _pictures(cards, groups)
    for key, card in cards.items():
        frame = features[(features["client"] == key[0]) & (features["site"] == key[1])]
        block = _block(key, card, frame, places[key], strings, clients, sites, columns)
        block |= {"first": len(content["shards"]), "group": groups[key], "field": _field(card)}
        rows = feature_rows(card, strings, best.get(key), clients, columns, kept.get(groups[key]))
        content["shards"] += [shard(rows[start : start + SHARD]) for start in range(0, len(rows), SHARD)]
        content["blocks"].append(block)
    content["pairs"] = _pairs(pairs, clients, sites, terms or {})
    content |= {"strings": strings.table, "sheets": _sheets(cards, groups, kept), "row": _row_word(cards)}
    return content


def _row_word(cards: Mapping[Key, FeatureCards]) -> str:
    """What a row of activations is."""
    card = next(iter(cards.values()))
    if card.source.inputs.example(1).tokens is not None and card.rows != card.inputs:
        return "tokens"
    return "inputs" if card.rows == card.inputs else "positions"


TERMS = {
    "score": "correlation of the activations",
    "rival": "next best partner",
    "null": "reached by chance",
    "gain": "scale of the second over the first",
    "overlap": "rows on which both fire, of those on which one does",
    "energy": "energy in common",
}


def _check(cards: Mapping[Key, FeatureCards], pairs: pd.DataFrame, features: pd.DataFrame) -> None:
    for frame, client, latent in (
        (pairs, "client_a", "latent_a"), (pairs, "client_b", "latent_b"), (features, "client", "latent"),
    ):  # fmt: skip
        for key, group in frame.groupby([client, "site"]) if len(frame) else ():
            known, last = cards.get((str(key[0]), str(key[1]))), int(group[latent].max())  # type: ignore[index]
            if known is None or last >= len(known.counts) or group[latent].min() < 0:
                what = "has no cards" if known is None else f"has {len(known.counts)} latents, not {last + 1}"
                raise SpaceMismatch(f"client '{key[0]}' at site '{key[1]}' {what}; make its cards with feature_cards")


def _groups(cards: Mapping[Key, FeatureCards]) -> dict[Key, int]:
    """The number of the inputs of each client and site; what shares them can be shown side by side."""
    numbers: dict[str, int] = {}
    return {key: numbers.setdefault(card.source.inputs.digest, len(numbers)) for key, card in cards.items()}


def _classes(cards: Any) -> list[str]:
    named = [card.class_names for card in cards if card.classes is not None]
    return [str(name) for name in max(named, key=len, default=())]


def _places(cards: Mapping[Key, FeatureCards], pairs: pd.DataFrame, method: str) -> dict[Key, np.ndarray]:
    groups = {key: (id(card.source.module), key[1]) for key, card in cards.items()}
    links: list[Link] = []
    for (site, a, b), group in pairs.groupby(["site", "client_a", "client_b"], sort=False) if len(pairs) else ():
        links.append(((a, site), (b, site), group["latent_a"].to_numpy(), group["latent_b"].to_numpy()))
    return layout({key: card.atoms for key, card in cards.items()}, groups, links, method)


def _block(
    key: Key,
    card: FeatureCards,
    frame: pd.DataFrame,
    places: np.ndarray,
    strings: Strings,
    clients: Sequence[str],
    sites: Sequence[str],
    columns: Sequence[str],
) -> dict[str, Any]:
    """The index of one client at one site."""
    count = len(card.counts)
    frame = frame.drop_duplicates("latent").set_index("latent").reindex(range(count))
    alive = card.counts.numpy() > 0
    named = frame["kind"].where(frame["kind"].isin(KINDS), pd.Series(np.where(alive, "own", "dead")))
    kinds = [KINDS.index(kind) for kind in named]
    top = np.full(count, NO_CLASS)
    if card.classes is not None and card.classes.shape[1]:
        top = np.where(alive, card.classes.argmax(1).numpy(), NO_CLASS)
    words = words_of(card, strings, columns)
    notes = frame["note"].fillna("").tolist() if "note" in frame else []
    effect = card.effect.words if card.effect is not None else None
    return {
        "client": clients.index(key[0]), "site": sites.index(key[1]), "latents": count, "rows": card.rows,
        "inputs": card.inputs, "density": numbers(card.density, "f32"), "mean": numbers(card.mean, "f32"),
        "max": numbers(card.max, "f32"), "energy": numbers(card.energy, "f32"), "kind": numbers(kinds, "u8"),
        "score": numbers(frame["score"], "f32"), "x": numbers(65535 * places[:, 0], "u16"),
        "y": numbers(65535 * places[:, 1], "u16"), "words": numbers(words, "u32"), "class": numbers(top, "u16"),
        "notes": notes if any(notes) else None, "effect": effect,
    }  # fmt: skip


def _pairs(
    pairs: pd.DataFrame,
    clients: Sequence[str],
    sites: Sequence[str],
    terms: Mapping[tuple[str, str], Mapping[str, str]],
) -> list[dict[str, Any]]:
    found = []
    for (site, a, b), group in pairs.groupby(["site", "client_a", "client_b"], sort=False) if len(pairs) else ():
        kind = group["kind"].map({name: k for k, name in enumerate(PAIR_KINDS)}).fillna(0)
        entry = {"site": sites.index(site), "a": clients.index(a), "b": clients.index(b), "kind": numbers(kind, "u8")}
        entry["terms"] = {**TERMS, **terms.get((str(a), str(b)), {})}
        entry |= {name: numbers(group[name], "u32") for name in ("latent_a", "latent_b")}
        entry |= {name: numbers(group[name], "f32") for name in TERMS if name in group}
        found.append(entry)
    return found


def _best_partners(cards: Mapping[Key, FeatureCards], pairs: pd.DataFrame) -> dict[Key, Beside]:
    """For each client and site the best partner of every latent, and its codes where this one is strongest."""
    found: dict[Key, Beside] = {}
    if not len(pairs):
        return found
    turned = pairs.rename(columns={
        "client_a": "client_b", "client_b": "client_a", "latent_a": "latent_b", "latent_b": "latent_a",
    })  # fmt: skip
    both = pd.concat([pairs, turned], ignore_index=True)
    both = both.sort_values("score", ascending=False, kind="stable")
    both = both.drop_duplicates(["site", "client_a", "latent_a"])
    for key, card in cards.items():
        mine = both[(both["client_a"] == key[0]) & (both["site"] == key[1])]
        for other, group in mine.groupby("client_b", sort=False):
            theirs = cards[(str(other), key[1])]
            if theirs.inputs == card.inputs:
                beside = found.setdefault(key, Beside.empty(card))
                beside.read(str(other), theirs, torch.tensor(group[["latent_a", "latent_b"]].to_numpy()))
    return found


def _pictures(cards: Mapping[Key, FeatureCards], groups: Mapping[Key, int]) -> dict[int, torch.Tensor]:
    """Inputs that are shown as pictures or lines, by their number: first contexts first, as many as fit a sheet."""
    found: dict[int, torch.Tensor] = {}
    for group in sorted(set(groups.values())):
        members = [card for key, card in cards.items() if groups[key] == group]
        if members[0].source.inputs.example(1).tokens is not None:
            continue
        ranks = [(c.input[:, k], c.value[:, k]) for k in range(20) for m in members for c in (m.top, m.lower)
                 if k < c.value.shape[1]]  # fmt: skip
        inputs = torch.cat([inputs[value > -torch.inf] for inputs, value in ranks])
        used = list(dict.fromkeys(inputs.tolist()))[: thumbnail_limit(members[0].source)]
        found[group] = torch.tensor(sorted(used), dtype=torch.long)
    return found


def _sheets(
    cards: Mapping[Key, FeatureCards], groups: Mapping[Key, int], kept: Mapping[int, torch.Tensor]
) -> list[Any]:
    """For each group of inputs its sheet of pictures, or null for text."""
    found: list[Any] = []
    for key, card in cards.items():
        if groups[key] < len(found):
            continue
        used = kept.get(groups[key])
        found.append(None if used is None else {**thumbnails(card.source, used), "members": numbers(used, "u32")})
    return found


def _field(card: FeatureCards) -> dict[str, Any] | None:
    """Where positions are in a picture, as shares of its sides; the picture is shown whole where that is unknown."""
    example = card.source.inputs.example(1)
    if example.tokens is not None or card.rows == card.inputs:
        return None
    if not is_picture(example.tensors[0][0]):
        return {"length": card.rows // max(1, card.inputs)}
    patches = patches_of(card.source)
    return None if patches is None else vars(patches)
