"""What is computed once and shared between methods, keyed by the identity of what it was computed from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

Value = TypeVar("Value")


class Memory:
    """Values by what they were made of.

    A key holds the objects themselves, compared by identity: a changed probe, module or dictionary is another object,
    so that nothing old can come back.

    >>> memory.get("moments", (source, target, probe), make=lambda: cross_moments(source, target, probe))
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[Any, ...], tuple[tuple[Any, ...], Any]] = {}

    def get(self, kind: str, parts: tuple[Any, ...], make: Callable[[], Value]) -> Value:
        """The value of `kind` made of `parts`, made now if it is not kept; parts are kept alive with it."""
        key = (kind, *(part if isinstance(part, (str, int, float)) else id(part) for part in parts))
        if key not in self._kept:
            self._kept[key] = (parts, make())
        return self._kept[key][1]
