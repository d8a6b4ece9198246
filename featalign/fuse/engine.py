"""Fusing a problem by a registered method: choose what is left open, propose, apply the rule, repair, refit."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from featalign.errors import BadOption
from featalign.fuse.choose import choose_options, head_of
from featalign.fuse.distil import distil
from featalign.fuse.methods.registry import Method, Proposal, require
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
    head_ridge: float | None = None,
    steps: int = 0,
    **options: Any,
) -> FusionResult:
    """Fuse the clients of a problem by a registered method.

    Args:
        refit: follow with the closed-form refit (methods that require it always do).
        repair: of statistics; on for networks of ten affine layers or more unless said otherwise.
        head: readout target of the refit, one of the task's `heads`, or "none" for the rule's; by default the task's
            first, or for classes by how far the clients agree on the probe (`choose.head_of`).
        ridge: of the refit, relative to each layer's Gram matrix.
        head_ridge: of the readout; see `refit`.
        steps: of gradient descent on the ensemble's outputs after the refit, on the same inputs.
        options: of the method, its keyword-only parameters; "auto" chooses among the method's candidates on a held-out
            part of the probe.

    Raises `UnknownName` for an unknown method, `BadOption` for an option it does not have or a method that the cohort
    does not allow, with the reason.
    """
    entry = require(problem, method)
    bound = entry.bind(options, method)
    ridges = (positive(ridge, "ridge"), None if head_ridge is None else positive(head_ridge, "head_ridge"))
    steps = convert(steps, int, "steps")
    if steps < 0:
        raise BadOption(f"steps = {steps}; give 0 or more")
    began = time.perf_counter()
    problem.cohort.task.check_head(None if head == "none" else head)
    if head is None and (steps or refit or entry.refit == "required"):
        head = head_of(problem)

    def fused(problem: FusionProblem, chosen: Mapping[str, Any]) -> FusionResult:
        return _solve(problem, entry, method, chosen, refit, repair, head, ridges)

    bound, tried = choose_options(problem, bound, entry.grid, lambda *given: fused(*given).module)
    result = fused(problem, bound)
    notes = {**result.notes, **({"tried": tried} if tried else {})}
    if steps and problem.averaged:
        losses = distil(problem, result.module, steps, None if head == "none" else head)
        notes["steps"] = {"count": steps, "loss_first": losses[0], "loss_last": losses[-1]}
    return replace(result, notes=notes, seconds=time.perf_counter() - began)


def positive(value: Any, name: str) -> float:
    """A ridge; raises `BadOption` for anything but a number above zero."""
    found: float = convert(value, float, name)
    if found <= 0:
        raise BadOption(f"{name} = {found}; give a number above 0, relative to each layer's Gram matrix")
    return found


def _solve(
    problem: FusionProblem,
    entry: Method,
    method: str,
    options: Mapping[str, Any],
    refit: bool,
    repair: bool | None,
    head: str | None,
    ridges: tuple[float, float | None],
) -> FusionResult:
    """Propose, apply the rule, repair, refit."""
    proposal = propose(problem, method, options)
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
            problem, module, proposal.alignments, proposal.targets, proposal.exact_first, ridges[0], head,
            proposal.statistics, ridges[1], proposal.codes,
        )  # fmt: skip
    return FusionResult(
        method, options, with_refit, module, proposal.alignments, tuple(fits), proposal.matches, proposal.notes, 0.0,
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
