"""The front door: one entry point for every solver, found by name."""

from __future__ import annotations

from typing import Any

from featalign.errors import BadOption
from featalign.transport.plan import Plan
from featalign.transport.problem import Problem
from featalign.transport.solvers import run


def solve(cost: Any, a: Any = None, b: Any = None, method: str = "auto", *, mask: Any = None, **options: Any) -> Plan:
    """Transport plan of `cost [n, m]` (array, tensor, `GroundCost` or `Problem`) between masses `a [n]` and `b [m]`.

    `method` is a name in `SOLVERS`; options are those of the solver of that name. Masses default to uniform. `mask
    [n, m]` is true where mass may go; pairs off the mask are never used, whatever their cost.

    >>> plan = solve(cost)                                    # equal widths: an assignment
    >>> plan = solve(cost, method="partial", threshold=0.4)   # pairs worse than 0.4 stay unmatched
    >>> plan = solve(cost, a, b, mask=allowed)                # forbidden pairs carry nothing
    >>> plan.value, plan.lower_bound, plan.gap, plan.pairs

    Raises `UnknownName` for an unknown method, `BadOption` for an option the method does not have, `InfeasibleError`
    when no plan keeps to the mask, and other subclasses of `FeatalignError` for ill-posed problems.
    """
    if not isinstance(cost, Problem):
        return run(Problem(cost, a, b, mask), method, options)
    if a is not None or b is not None or mask is not None:
        raise BadOption("a problem has its masses and its mask: give Problem(cost, a, b, mask) and nothing beside it")
    return run(cost, method, options)
