"""A registry by name, forty lines: methods, costs, solvers, data sets and models are found through one of these."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from featalign.errors import UnknownName

T = TypeVar("T")


class Registry(Generic[T]):
    """Named objects of one kind.

    >>> solvers = Registry("solver")
    >>> @solvers.register("exact")
    ... def exact(cost): ...
    >>> solvers["exact"]          # unknown names raise UnknownName and list the choices
    """

    def __init__(self, kind: str):
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that files the object under `name`; a name is given once."""

        def file(entry: T) -> T:
            if name in self._entries:
                raise UnknownName(f"{self.kind} '{name}' is registered already")
            self._entries[name] = entry
            return entry

        return file

    def __getitem__(self, name: str) -> T:
        if name not in self._entries:
            close = difflib.get_close_matches(str(name), self._entries, n=1)
            hint = f"; did you mean '{close[0]}'?" if close else ""
            raise UnknownName(f"unknown {self.kind} '{name}'{hint} choices: {', '.join(sorted(self._entries))}")
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def names(self) -> list[str]:
        """Names in order of registration."""
        return list(self._entries)
