"""Dictionaries of every space of every client, trained on what each client saw and cached by what determines them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from featalign import storage
from featalign.data.inputs import Inputs
from featalign.dictionaries.architectures import ARCHITECTURES
from featalign.dictionaries.dictionary import Dictionary
from featalign.dictionaries.loading import load
from featalign.dictionaries.preflight import DictionaryWarning
from featalign.dictionaries.training import train
from featalign.spaces.capture import collect
from featalign.spaces.graph import Site, Space, SpaceGraph
from featalign.spaces.naming import hook_name_of, provenance

VERSION = 3  # raise it when a change to training changes trained dictionaries
SAMPLES = 20_000  # activations per dictionary; more do not help at these widths
FEW, FEW_STEPS = 5_000, 500  # below FEW samples this many steps pass over the data a hundred times and more


def cached_dictionaries(
    clients: Sequence[nn.Module],
    graphs: Sequence[SpaceGraph],
    data: Sequence[Any],
    names: Sequence[str],
    architecture: str,
    seed: int = 0,
    keys: Sequence[str] | None = None,
    expansion: float = 0.0,
    k: float = 0.0,
) -> dict[str, tuple[Dictionary, ...]]:
    """One dictionary per client and hidden space: `{space: (client 0's, client 1's, ...)}`.

    Args:
        data: inputs that each client saw (see `data.Inputs`); at most `SAMPLES` rows of activations are used.
        names: of the clients, for messages and metadata.
        architecture: registered name; those that transcode map pre- to post-activations, others read the latter.
        keys: fingerprints of the clients; without them nothing is cached. A damaged entry is trained again with a
            warning.
        expansion, k: width as a multiple of the units and active latents; 0 means the defaults.
    """
    found: dict[str, list[Dictionary]] = {}
    for index, (client, graph, inputs, name) in enumerate(zip(clients, graphs, data, names)):
        spaces = [space for space in graph.hidden if space.pre is not None]
        identity: dict[str, Any] = {"architecture": architecture, "seed": seed, "expansion": expansion, "k": k}
        identity |= {"client": keys[index] if keys else "", "version": VERSION, "samples": SAMPLES}
        inputs = Inputs.of(inputs)
        sites = [site for space in spaces for site in (space.pre, space.post or space.pre) if site is not None]
        sites = list(dict.fromkeys(sites))
        per_input = _rows_per_input(client, inputs, sites)
        steps = FEW_STEPS if len(inputs) * per_input < FEW else None
        if steps:
            identity["steps"] = steps
        build = partial(
            _train, client, name, inputs, spaces, sites, per_input, architecture, seed,
            expansion=expansion, k=k, steps=steps,
        )  # fmt: skip
        if keys:
            folder = storage.cache_folder() / "dictionaries" / storage.fingerprint(identity)
            trained = storage.cached(folder, build, partial(_read, spaces), _write)
        else:
            trained = build()
        for space in spaces:
            found.setdefault(space.name, []).append(trained[space.name])
    return {name: tuple(members) for name, members in found.items()}


def _train(
    client: nn.Module,
    name: str,
    inputs: Inputs,
    spaces: Sequence[Space],
    sites: Sequence[Site],
    per_input: int,
    architecture: str,
    seed: int,
    *,
    expansion: float,
    k: float,
    steps: int | None,
) -> dict[str, Dictionary]:
    """A dictionary of every space of one client."""
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(seed))[: -(-SAMPLES // per_input)]
    held = {site: _some(rows, seed) for site, rows in collect(client, inputs.subset(order), sites).items()}
    transcodes = ARCHITECTURES[architecture].transcodes
    trained = {}
    for space in spaces:
        pre, post = held[space.before], held[space.after]
        with warnings.catch_warnings():  # a few dead units are routine in a trained ReLU layer
            warnings.filterwarnings("ignore", ".*units are constant", DictionaryWarning)
            trained[space.name] = train(
                pre if transcodes else post,
                width=round(expansion * space.size) if expansion else None,
                architecture=architecture,
                k=k or None,
                seed=seed,
                steps=steps,
                metadata={"client": name, "space": space.name, **_place(client, space, inputs, transcodes)},
                targets=post if transcodes else None,
                allow_narrow=True,  # the page of a comparison says how narrow
            )
    return trained


def _place(client: nn.Module, space: Space, inputs: Inputs, transcodes: bool) -> dict[str, Any]:
    """Where a dictionary belongs; a transcoder reads one place and writes another."""
    if not transcodes:
        return provenance(client, space.after, inputs)
    return {**provenance(client, space.before, inputs), "hook_name_out": hook_name_of(client, space.after)}


def _read(spaces: Sequence[Space], folder: Path) -> dict[str, Dictionary]:
    return {space.name: load(folder / storage.safe_name(space.name)) for space in spaces}


def _write(trained: dict[str, Dictionary], folder: Path) -> None:
    for name, dictionary in trained.items():
        dictionary.save(folder / storage.safe_name(name))


def _rows_per_input(client: nn.Module, inputs: Inputs, sites: Sequence[Site]) -> int:
    """Fewest rows of activations that one input gives at any site; 1 where there is no site."""
    held = collect(client, [inputs.example(1)], sites) if sites else {}
    return max(1, min((len(rows) for rows in held.values()), default=1))


def _some(rows: torch.Tensor, seed: int) -> torch.Tensor:
    """At most `SAMPLES` rows; the same ones at sites of equal length."""
    if len(rows) <= SAMPLES:
        return rows
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:SAMPLES].sort().values]
