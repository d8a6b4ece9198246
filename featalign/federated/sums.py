"""Sums over clients in which no summand can be read: pairwise masks that cancel (Bonawitz et al. 2017, section 4).

Summands are written as fixed-point numbers modulo 2^64; every pair of clients shares a secret, from which one adds a
mask of uniform numbers and the other subtracts it. What a client sends is uniform, the sum over all of them exact to
the fixed point. A client that stays away leaves its masks in the sum: secret shares that mend this are a protocol's
business (Flower's SecAgg+), here the sum is given up.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch

from featalign.errors import BadOption
from featalign.federated.messages import State

SCALE = 2.0**32  # of the fixed point
LARGEST = 2.0**30  # of a summand: sums of two and more stay inside 64 bits


def masked(summand: State, client: str, clients: Sequence[str], secret: int) -> State:
    """What a client sends: int64 tensors that are uniform to whoever lacks the secrets of its pairs.

    `secret` stands for what pairs of clients agree on. Raises `BadOption` for summands too large for the fixed point.
    """
    found = {}
    for name, value in summand.items():
        if float(value.abs().max()) > LARGEST:
            raise BadOption(f"'{name}' holds numbers beyond {LARGEST:g}, more than masked sums carry; scale the data")
        total = (value.double() * SCALE).round().long()
        for other in clients:
            if other != client:
                sign = 1 if client < other else -1
                total = total + sign * _mask(secret, min(client, other), max(client, other), name, value.shape)
        found[name] = total
    return found


def summed(sent: Sequence[State]) -> State:
    """The sum of what all clients of a group sent, float64."""
    found: State = {}
    for part in sent:
        for name, value in part.items():
            found[name] = found[name] + value if name in found else value
    return {name: value.double() / SCALE for name, value in found.items()}


def _mask(secret: int, first: str, second: str, name: str, shape: torch.Size) -> torch.Tensor:
    """Uniform over all of int64, alike on both sides of a pair."""
    digest = hashlib.sha256(f"{secret}/{first}/{second}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))
    halves = torch.randint(-(2**31), 2**31, (2, *shape), generator=generator)
    return (halves[0] << 32) + halves[1]
