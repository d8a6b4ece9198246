"""One entry point for every solver, found by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from featalign.registry import Registry
from featalign.transport.exact import exact
from featalign.transport.partial import partial
from featalign.transport.plan import Plan

SOLVERS: Registry[Callable[..., Plan]] = Registry("transport method")
SOLVERS.register("exact")(exact)
SOLVERS.register("partial")(partial)


@SOLVERS.register("auto")
def auto(cost: Any, a: Any = None, b: Any = None, **options: Any) -> Plan:
    """Choose a solver by what is asked: `threshold` or `mass` mean partial, everything else is exact."""
    if options.get("threshold") is not None or options.get("mass") is not None:
        return partial(cost, a, b, **options)
    return exact(cost, a, b, **options)


def solve(cost: Any, a: Any = None, b: Any = None, method: str = "auto", **options: Any) -> Plan:
    """Transport plan of `cost [n, m]` (array or tensor) between masses `a [n]` and `b [m]`, with its certificate.

    `method` is a name in `SOLVERS`; options are those of the solver of that name. Masses default to uniform.

    >>> plan = solve(cost)                                    # equal widths: an assignment
    >>> plan = solve(cost, method="partial", threshold=0.4)   # pairs worse than 0.4 stay unmatched
    >>> plan.value, plan.lower_bound, plan.gap, plan.pairs

    Raises `UnknownName` for an unknown method and subclasses of `FeatalignError` for ill-posed problems.
    """
    return SOLVERS[method](cost, a, b, **options)
