"""The registry of solvers: a solver is a function of a `Problem`, its options are its keyword arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from featalign.errors import BadOption
from featalign.registry import Registry
from featalign.transport.plan import Plan
from featalign.transport.problem import Problem

SOLVERS: Registry[Callable[..., Plan]] = Registry("transport method")

solver = SOLVERS.register  # @solver("name") files a function `(problem, *, option=default, ...) -> Plan`


def run(problem: Problem, method: str, options: dict[str, Any]) -> Plan:
    """The plan of the solver of that name.

    Raises `UnknownName` for an unknown method, `BadOption` for an option that it does not have.
    """
    found = SOLVERS[method]
    if options:
        parameters = inspect.signature(found).parameters.values()
        known = [each.name for each in parameters if each.kind is each.KEYWORD_ONLY]
        open_ended = any(each.kind is each.VAR_KEYWORD for each in parameters)
        for name in () if open_ended else options:
            if name not in known:
                raise BadOption(f"transport method '{method}' has no option '{name}'; options: {', '.join(known)}")
    return found(problem, **options)
