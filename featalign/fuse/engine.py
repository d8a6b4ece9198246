"""Fusing a problem by a registered method: propose, apply the rule, repair, refit."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from typing import Any

from featalign.errors import BadOption
from featalign.fuse.methods.registry import Proposal, require
from featalign.fuse.problem import FusionProblem
from featalign.fuse.refit import LayerFit
from featalign.fuse.refit import refit as refit_layers
from featalign.fuse.repair import LayerRepair, is_deep
from featalign.fuse.repair import repair as repair_statistics
from featalign.fuse.result import FusionResult
from featalign.fuse.rule import apply_rule
from featalign.options import convert


def solve(
    problem: FusionProblem,
    method: str,
    *,
    refit: bool = False,
    repair: bool | None = None,
    head: str | None = None,
    ridge: float = 1e-2,
    **options: Any,
) -> FusionResult:
    """Fuse the clients of a problem by a registered method.

    Args:
        refit: follow with the closed-form refit (methods that require it always do).
        repair: of statistics; on for networks of ten affine layers or more unless said otherwise.
        head: readout target of the refit, one of the task's `heads`, or "none" for the rule's.
        ridge: of the refit, relative to each layer's Gram matrix.
        options: of the method, its keyword-only parameters.

    Raises `UnknownName` for an unknown method, `BadOption` for an option it does not have or a method that the cohort
    does not allow, with the reason.
    """
    entry = require(problem, method)
    bound = entry.bind(options, method)
    ridge = convert(ridge, float, "ridge")
    if ridge <= 0:
        raise BadOption(f"ridge = {ridge}; give a number above 0, relative to each layer's Gram matrix")
    began = time.perf_counter()
    proposal = propose(problem, method, bound)
    ready = proposal.module is not None and proposal.complete
    module = apply_rule(problem, proposal.alignments) if proposal.module is None else copy.deepcopy(proposal.module)
    with_refit = not ready and (entry.refit == "required" or (refit and entry.refit != "none"))
    with_repair = not ready and proposal.statistics and (is_deep(problem) if repair is None else repair)
    fits: list[LayerFit] = []
    repairs: list[LayerRepair] = []
    if with_repair and problem.averaged:
        repairs = repair_statistics(problem, module, proposal.alignments)
    if with_refit and problem.averaged:
        fits = refit_layers(
            problem, module, proposal.alignments, proposal.targets, proposal.exact_first, ridge, head,
            proposal.statistics,
        )  # fmt: skip
    seconds = time.perf_counter() - began
    return FusionResult(
        method, bound, with_refit, module, proposal.alignments, tuple(fits), proposal.matches, proposal.notes, seconds,
        with_repair, tuple(repairs),
    )  # fmt: skip


def propose(problem: FusionProblem, method: str, options: Mapping[str, Any]) -> Proposal:
    """What a method proposes, kept where it does not depend on the mixing weights."""
    entry = require(problem, method)
    if entry.follows_mixing:
        return entry.function(problem, **options)
    bases = tuple(basis for found in problem.dictionaries.values() for basis in found)
    cohort = problem.cohort
    parts = (*cohort.modules, cohort.probe, problem.activations, *bases, problem.reference, cohort.seed)
    kind = f"proposal {method} {sorted(options.items())}"
    return problem.memory.get(kind, parts, lambda: entry.function(problem, **options))
