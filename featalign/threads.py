"""Threads: small products run faster on one core than the cores take to wait for each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

Part = TypeVar("Part")
Result = TypeVar("Result")


@contextmanager
def single_thread() -> Iterator[None]:
    """One intra-operation thread inside, the previous number after."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def over_cores(work: Callable[[Part], Result], parts: Sequence[Part]) -> list[Result]:
    """`[work(part) for part in parts]`, each part on one core, as many at a time as torch has threads.

    Small products gain little from more threads and stall badly when another process holds a core.
    """
    workers = min(torch.get_num_threads(), len(parts))

    def alone(part: Part) -> Result:
        torch.set_num_threads(1)
        return work(part)

    with single_thread():
        if workers <= 1:
            return [work(part) for part in parts]
        with ThreadPoolExecutor(workers) as pool:
            return list(pool.map(alone, parts))
