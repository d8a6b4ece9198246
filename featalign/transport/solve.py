"""One entry point for every solver, found by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from featalign.errors import BadOption
from featalign.registry import Registry
from featalign.transport.costs import GroundCost
from featalign.transport.exact import exact
from featalign.transport.partial import partial
from featalign.transport.plan import Plan
from featalign.transport.sinkhorn import entropic
from featalign.transport.sparse import sparse
from featalign.transport.unbalanced import unbalanced

SOLVERS: Registry[Callable[..., Plan]] = Registry("transport method")
SOLVERS.register("exact")(exact)
SOLVERS.register("partial")(partial)
SOLVERS.register("sparse")(sparse)
SOLVERS.register("sinkhorn")(entropic)
SOLVERS.register("unbalanced")(unbalanced)

DENSE_LIMIT = 6000 * 6000  # entries of a ground-cost object up to which it is held whole (288 MB)


@SOLVERS.register("auto")
def auto(cost: Any, a: Any = None, b: Any = None, **options: Any) -> Plan:
    """Choose a solver by what is asked, by size, and by where the cost lies.

    A tensor on an accelerator goes to `sinkhorn` there (exact solvers run on the CPU). Ground-cost objects of more than
    `DENSE_LIMIT` entries go to `sparse`; `threshold` or `mass` mean `partial`; everything else is `exact`, which takes
    assignment or network simplex by shape and masses. The plan's `reason` says which and why.
    """
    if not options and isinstance(cost, np.ndarray):
        return exact(cost, a, b)
    device = getattr(getattr(cost, "device", None), "type", "cpu")
    if device != "cpu" and not {"threshold", "mass"} & options.keys():
        return solve(cost, a, b, "sinkhorn", device=device, **options)
    if isinstance(cost, GroundCost) and cost.shape[0] * cost.shape[1] > DENSE_LIMIT and options.get("mass") is None:
        return solve(cost, a, b, "sparse", **options)
    if options.get("threshold") is not None or options.get("mass") is not None:
        return solve(cost, a, b, "partial", **options)
    return solve(cost, a, b, "exact", **options)


def solve(cost: Any, a: Any = None, b: Any = None, method: str = "auto", **options: Any) -> Plan:
    """Transport plan of `cost [n, m]` (array, tensor or `GroundCost`) between masses `a [n]` and `b [m]`.

    `method` is a name in `SOLVERS`; options are those of the solver of that name. Masses default to uniform.

    >>> plan = solve(cost)                                    # equal widths: an assignment
    >>> plan = solve(cost, method="partial", threshold=0.4)   # pairs worse than 0.4 stay unmatched
    >>> plan.value, plan.lower_bound, plan.gap, plan.pairs

    Raises `UnknownName` for an unknown method, `BadOption` for an option the method does not have, and subclasses of
    `FeatalignError` for ill-posed problems.
    """
    solver = SOLVERS[method]
    if options and solver is not auto:
        known = list(inspect.signature(solver).parameters)[3:]
        for name in options:
            if name not in known:
                raise BadOption(f"transport method '{method}' has no option '{name}'; options: {', '.join(known)}")
    return solver(cost, a, b, **options)
