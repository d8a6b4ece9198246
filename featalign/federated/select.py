"""Who takes part in a round: registered laws of presence.

>>> presence = SELECTIONS["k-of-n"](100, k=10)
>>> presence.draw(np.random.default_rng(0)).present      # [10] clients
>>> presence.rates                                       # [100] chance of each to be there
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from featalign.errors import BadOption
from featalign.registry import Registry

TABULATED = 5000  # subsets up to which a law is written out


@dataclass(frozen=True)
class Draw:
    """Clients of a round: who was asked, and who of them is there to answer, `[n]` int64 each, sorted."""

    asked: np.ndarray
    present: np.ndarray


@dataclass(frozen=True)
class Presence:
    """A law of presence.

    Attributes:
        draw: one round from a generator.
        rates: `[clients]` chance to be present in a round.
        subsets, q: the law written out, where it has at most `TABULATED` subsets; empty otherwise.
    """

    draw: Callable[[np.random.Generator], Draw]
    rates: np.ndarray
    subsets: tuple[np.ndarray, ...] = ()
    q: np.ndarray | None = None


SELECTIONS: Registry[Callable[..., Presence]] = Registry("selection")


def of_law(subsets: tuple[np.ndarray, ...], q: np.ndarray, clients: int) -> Presence:
    """The presence of a law that is written out: subsets of clients and their probabilities `q [subsets]`."""
    q = np.asarray(q, dtype=np.float64) / np.sum(q)
    rates = np.zeros(clients)
    for members, chance in zip(subsets, q):
        rates[members] += chance

    def draw(rng: np.random.Generator) -> Draw:
        members = np.sort(subsets[rng.choice(len(subsets), p=q)])
        return Draw(members, members)

    return Presence(draw, rates, tuple(subsets), q)


@SELECTIONS.register("all")
def everybody(clients: int) -> Presence:
    """All clients in every round."""
    return of_law((np.arange(clients),), np.ones(1), clients)


@SELECTIONS.register("k-of-n")
def k_of_n(clients: int, *, k: int = 2) -> Presence:
    """`k` clients, each subset equally often."""
    _check_count(k, clients)
    if math.comb(clients, k) <= TABULATED:
        subsets = tuple(np.array(chosen) for chosen in itertools.combinations(range(clients), k))
        return of_law(subsets, np.ones(len(subsets)), clients)

    def draw(rng: np.random.Generator) -> Draw:
        chosen = np.sort(rng.choice(clients, k, replace=False))
        return Draw(chosen, chosen)

    return Presence(draw, np.full(clients, k / clients))


@SELECTIONS.register("restricted")
def restricted(clients: int, *, k: int = 2, subsets: int = 120, rarest: float = 0.01, seed: int = 0) -> Presence:
    """Restricted availability: at most so many fixed subsets of `k`; clients' rates fall geometrically to `rarest`.

    Source: Rahimi and Kalogerias 2025, restricted availability. The last client is the rarest.
    """
    members, q = restricted_law(clients, k, subsets, rarest, seed)
    return of_law(tuple(members), q, clients)


@SELECTIONS.register("groups")
def groups(clients: int, *, size: int = 2, stride: int = 1, rarest: float = 0.1) -> Presence:
    """Coordinated sampling: groups on a ring, every `stride`-th client, show up as a whole; rates fall to `rarest`.

    Source: Rahimi and Kalogerias 2025, coordinated sampling.
    """
    _check_count(size, clients)
    _check_share(rarest, "rarest")
    if len(set((stride * np.arange(size) % clients).tolist())) < size:
        raise BadOption(f"stride = {stride}: a group of {size} of {clients} clients meets one of them twice")
    members = tuple(np.sort((first + stride * np.arange(size)) % clients) for first in range(clients))
    return of_law(members, np.geomspace(1.0, rarest, clients), clients)


@SELECTIONS.register("drop-outs")
def drop_outs(clients: int, *, k: int | None = None, rate: float = 0.3) -> Presence:
    """`k` clients (all by default) are asked, each fails to answer with probability `rate`; somebody always answers."""
    asked = clients if k is None else k
    _check_count(asked, clients)
    if not 0 <= rate < 1:
        raise BadOption(f"rate = {rate}; the share of drop-outs lies in [0, 1)")

    def draw(rng: np.random.Generator) -> Draw:
        chosen = np.sort(rng.choice(clients, asked, replace=False))
        stays = rng.random(asked) >= rate
        while not stays.any():
            stays = rng.random(asked) >= rate
        return Draw(chosen, chosen[stays])

    return Presence(draw, np.full(clients, asked / clients * (1 - rate) / (1 - rate**asked)))


def restricted_law(clients: int, k: int, subsets: int, rarest: float, seed: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Subsets of `k` clients and their probabilities, frequent clients far more often; everybody is in one."""
    _check_count(k, clients)
    _check_share(rarest, "rarest")
    rng = np.random.default_rng(seed)
    rate = np.geomspace(1.0, rarest, clients)
    drawn = {
        tuple(sorted(map(int, rng.choice(clients, k, replace=False, p=rate / rate.sum())))) for _ in range(20 * subsets)
    }
    listed = sorted(drawn)
    kept = [np.array(listed[place]) for place in rng.permutation(len(listed))[:subsets]]
    for lone in np.setdiff1d(np.arange(clients), np.concatenate(kept)):
        others = rng.choice(np.delete(np.arange(clients), lone), k - 1, replace=False)
        kept.append(np.sort(np.append(others, lone)))
    q = np.array([rate[members].prod() ** (1 / k) for members in kept])
    return kept, q / q.sum()


def _check_count(k: int, clients: int) -> None:
    if not 1 <= k <= clients:
        raise BadOption(f"{k} of {clients} clients a round; give 1 to {clients}")


def _check_share(value: float, name: str) -> None:
    if not 0 < value <= 1:
        raise BadOption(f"{name} = {value}; give a number in (0, 1]")
