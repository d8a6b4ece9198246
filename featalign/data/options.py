"""Options of registered functions, checked against their signatures before any work is done."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Collection
from numbers import Integral, Real
from typing import Any, TypeVar, get_type_hints

from featalign.errors import BadOption
from featalign.registry import Registry

F = TypeVar("F", bound=Callable[..., Any])


def checked(registry: Registry[F], name: str, options: dict[str, Any], given: Collection[str]) -> F:
    """The function registered under `name`, once it is known to take `options`.

    `given` are the parameters that the caller fills in. Raises `UnknownName` for the name, `BadOption` for an option
    that the signature lacks, and for a value of the wrong type or that is not finite.
    """
    function = registry[name]
    parameters = {key: p for key, p in inspect.signature(function).parameters.items() if key not in given}
    hints = get_type_hints(function)
    for key, value in options.items():
        if key not in parameters:
            takes = ", ".join(sorted(parameters)) or "none"
            raise BadOption(f"{registry.kind} '{name}' has no option '{key}'; its options: {takes}")
        _check(f"{registry.kind} '{name}': {key}", value, hints.get(key))
    return function


def _check(what: str, value: Any, kind: Any) -> None:
    """Raise `BadOption` for a value that is no whole number, or no finite number, where one is wanted."""
    number = isinstance(value, Real) and not isinstance(value, bool)
    if kind is int and not (number and isinstance(value, Integral)):
        raise BadOption(f"{what} = {value!r}; give a whole number")
    if kind is float and not (number and math.isfinite(value)):
        raise BadOption(f"{what} = {value!r}; give a finite number")
