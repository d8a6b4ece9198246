"""Rows of activations, and the input and position that each of them comes from."""

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


def read(
    networks: Mapping[str, nn.Module],
    inputs: Inputs,
    sites: Sequence[Site] | Mapping[str, Sequence[Site]],
    seed: int = 0,
    limit: int = ROWS,
) -> Reading:
    """Rows of every network; the first one tells where they came from.

    `sites` are those of all networks, or by network, in corresponding order.
    """
    found = Reading()
    if not isinstance(sites, Mapping):
        sites = {name: list(dict.fromkeys(sites)) for name in networks}
    first, own = next(iter(networks.values())), list(next(iter(sites.values())))
    size = fitting_batch(first, inputs, own)
    per_input = {site: len(rows) for site, rows in collect(first, [inputs.example(1)], own).items()}
    share = [min(1.0, limit / max(1, per_input[site] * len(inputs))) for site in own]
    for name, network in networks.items():
        parts: list[list[torch.Tensor]] = [[] for _ in own]
        places: list[list[torch.Tensor | None]] = [[] for _ in own]
        generator, start = torch.Generator().manual_seed(seed), 0
        batches = iter(inputs.batched(size))
        for batch in batches:
            _, held = next(stream(network, [batch], sites[name], size))
            for k, site in enumerate(sites[name]):
                rows = held[site]
                count = max(1, round(share[k] * len(rows)))
                chosen = torch.randperm(len(rows), generator=generator)[:count].sort().values
                parts[k].append(rows[chosen].cpu())
                if network is first:
                    found.total[site] = found.total.get(site, 0) + len(rows)
                    where = origins_of(network, site, batch, rows, start)
                    places[k].append(None if where is None else where[chosen])
            start += batch.size
        found.rows[name] = {site: torch.cat(each) for site, each in zip(sites[name], parts)}
        if network is first:
            for site, each in zip(own, places):
                known = [part for part in each if part is not None]
                found.origins[site] = torch.cat(known) if len(known) == len(each) else None
    return found
