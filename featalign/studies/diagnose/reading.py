"""Activations of every network at every site, and for every row the input that it came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from featalign.data.inputs import Inputs
from featalign.spaces.capture import collect, fitting_batch, origins_of, stream
from featalign.spaces.graph import Site

ROWS = 20_000  # rows of one site that are held; of more, the same share of every batch


@dataclass
class Reading:
    """Rows of activations of some inputs.

    Attributes:
        rows: by network and site, `[rows, units]`; rows of all networks correspond.
        origins: by site, `[rows, 2]`, the input and the position of each row; None where that cannot be told.
        total: by site, rows before any were left out.
    """

    rows: dict[str, dict[Site, torch.Tensor]] = field(default_factory=dict)
    origins: dict[Site, torch.Tensor | None] = field(default_factory=dict)
    total: dict[Site, int] = field(default_factory=dict)


def read(networks: Mapping[str, nn.Module], inputs: Inputs, sites: Sequence[Site], seed: int = 0) -> Reading:
    """Rows of every network; the first one tells where they came from."""
    found = Reading()
    sites = list(dict.fromkeys(sites))
    first = next(iter(networks.values()))
    size = fitting_batch(first, inputs, sites)
    per_input = {site: len(rows) for site, rows in collect(first, [inputs.example(1)], sites).items()}
    share = {site: min(1.0, ROWS / max(1, count * len(inputs))) for site, count in per_input.items()}
    for name, network in networks.items():
        parts: dict[Site, list[torch.Tensor]] = {site: [] for site in sites}
        places: dict[Site, list[torch.Tensor | None]] = {site: [] for site in sites}
        generator, start = torch.Generator().manual_seed(seed), 0
        batches = iter(inputs.batched(size))
        for batch in batches:
            _, held = next(stream(network, [batch], sites, size))
            for site in sites:
                rows = held[site]
                count = max(1, round(share[site] * len(rows)))
                chosen = torch.randperm(len(rows), generator=generator)[:count].sort().values
                parts[site].append(rows[chosen].cpu())
                if network is first:
                    found.total[site] = found.total.get(site, 0) + len(rows)
                    where = origins_of(network, site, batch, rows, start)
                    places[site].append(None if where is None else where[chosen])
            start += batch.size
        found.rows[name] = {site: torch.cat(each) for site, each in parts.items()}
        if network is first:
            for site, each in places.items():
                known = [part for part in each if part is not None]
                found.origins[site] = torch.cat(known) if len(known) == len(each) else None
    return found


def embedded(inputs: Inputs, origins: torch.Tensor | None) -> tuple[torch.Tensor | None, bool]:
    """What each row saw of the input, `[rows, d]`, and whether its columns mean something by themselves.

    The whole input where there is one row for each; the token where rows are tokens, one column for each of the most
    frequent ones. None for everything else.
    """
    from featalign.studies.compare.examples import is_picture

    if origins is None or not inputs.sized:
        return None, False
    example = inputs.example(1)
    if example.tokens is not None:
        ids = [batch.tokens for batch in inputs]
        if any(each is None or each.shape[1] != ids[0].shape[1] for each in ids):  # type: ignore[union-attr]
            return None, False
        tokens = torch.cat(ids)[origins[:, 0], origins[:, 1].clamp_max(ids[0].shape[1] - 1)]  # type: ignore[arg-type,union-attr]
        names, counts = tokens.unique(return_counts=True)
        common = names[counts.argsort(descending=True)[:256]]
        return (tokens[:, None] == common).float(), False
    if len(example.tensors) != 1 or not example.tensors[0].is_floating_point() or bool((origins[:, 1] > 0).any()):
        return None, False
    flat = torch.cat([batch.tensors[0].flatten(1).float().cpu() for batch in inputs])
    if flat.shape[1] > 4096:
        flat = torch.nn.functional.adaptive_avg_pool1d(flat[:, None], 1024)[:, 0]
    return flat[origins[:, 0]], not is_picture(example.tensors[0][0])
