"""The choice of a solver by what is asked, by size, and by where the cost lies."""

from __future__ import annotations

from typing import Any

from featalign.transport.plan import Plan
from featalign.transport.problem import Problem
from featalign.transport.solvers.registry import run, solver

DENSE_LIMIT = 6000 * 6000  # entries of a ground-cost object up to which it is held whole (288 MB)


@solver("auto")
def auto(problem: Problem, **options: Any) -> Plan:
    """Choose a solver; options are those of the solver that is taken, and the plan's `reason` says which and why.

    A tensor on an accelerator goes to `sinkhorn` there (exact solvers run on the CPU). Ground-cost objects of more than
    `DENSE_LIMIT` entries go to `sparse`; `threshold` or `mass` mean `partial`; everything else is `exact`, which takes
    assignment or network simplex by shape and masses.
    """
    n, m = problem.shape
    if problem.device != "cpu" and not {"threshold", "mass"} & options.keys():
        return run(problem, "sinkhorn", {"device": problem.device, **options})
    if problem.is_lazy and n * m > DENSE_LIMIT and options.get("mass") is None:
        return run(problem, "sparse", options)
    if options.get("threshold") is not None or options.get("mass") is not None:
        return run(problem, "partial", options)
    return run(problem, "exact", options)
