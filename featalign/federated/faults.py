"""What the server does not take from a client: reports that are late, repeated, malformed, foreign or far too large.

Every fault has a name; a report is dropped or clipped with a `ClientWarning`, and the round goes on.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch

from featalign.federated.messages import Failure, Order, Report, State
from featalign.federated.result import FaultRow

log = logging.getLogger(__name__)
ROUNDING = 1e-5  # of the weights' norm: updates below it are never too large
Typical = tuple[float, float]  # norm of an update, and norm per step of training
FAULTS = {
    "died": "gave no report",
    "late": "answered an earlier round, or after the deadline",
    "twice": "answered the round already",
    "uninvited": "was not asked",
    "architecture": "sent other tensors than the server's network has",
    "shape": "sent a tensor of another shape",
    "not-finite": "sent NaN or infinity",
    "foreign-dictionary": "sent a dictionary that another client's network was read with",
    "update-norm": "sent an update far larger than the others'",
}


class ClientWarning(UserWarning):
    """A client's report that was dropped or clipped."""


def examine(
    answers: Iterable[Report | Failure], orders: Sequence[Order], reference: State, deadline: float | None
) -> tuple[list[Report], list[FaultRow]]:
    """The reports of a round that can be used, in the orders' order, and a row for every fault.

    `reference` is the state of the server's network. Which of two reports of one client counts is the first.
    """
    asked = {order.client: order for order in orders}
    taken: dict[str, Report] = {}
    faults: list[FaultRow] = []
    number = orders[0].round if orders else 0
    answered: set[str] = set()
    for answer in answers:
        if isinstance(answer, Failure):
            answered.add(answer.client)
            faults.append(fault(number, answer.client, "died", answer.reason))
            continue
        found = _refusal(answer, asked, taken, reference, deadline)
        if found is not None:
            faults.append(fault(number, answer.client, *found))
            answered.add(answer.client)
        else:
            taken[answer.client] = answer
    silent = [name for name in asked if name not in taken and name not in answered]
    faults += [fault(number, name, "died", "no answer") for name in silent]
    return [taken[name] for name in asked if name in taken], faults


def clipped(
    reports: Sequence[Report], base: State, limit: float, typical: Typical, scale_down: bool
) -> tuple[list[Report], list[FaultRow], list[float], Typical]:
    """Updates far beyond the others', scaled down to what is allowed or dropped.

    Too far is more than `limit` times the typical norm *and* more than `limit` times the typical norm per step: clients
    with much data move far in many steps, clients with little move fast in few, and neither is a fault. Typical is the
    lower median of the round (of a single report: what the rounds before found). Returns the reports, rows of faults,
    norms of the updates relative to the base's (NaN without one), and what is typical.
    """
    norms = [update_norm(report.weights, base) for report in reports]
    steps = [max(report.statistics.get("steps", 1.0), 1.0) for report in reports]
    if len(norms) > 1 or not typical[0] > 0:
        typical = _lower_median(norms), _lower_median([norm / count for norm, count in zip(norms, steps)])
    size = update_norm(base, {}) or math.nan
    kept, faults, drift = [], [], []
    for report, norm, count in zip(reports, norms, steps):
        allowed = max(limit * max(typical[0], typical[1] * count), ROUNDING * update_norm(base, {}))
        share = 1.0
        if norm > allowed:
            detail = f"norm {norm:.3g}, allowed {allowed:.3g}"
            action = "clipped" if scale_down else "dropped"
            faults.append(fault(report.round, report.client, "update-norm", detail, action))
            if not scale_down:
                continue
            share = allowed / norm
            report = replace(report, weights=_shrunk(report.weights, base, share))
        kept.append(report)
        drift.append(share * norm / size)
    return kept, faults, drift, typical


def _lower_median(values: Sequence[float]) -> float:
    return sorted(values)[(len(values) - 1) // 2] if values else 0.0


def fault(number: int, client: str, name: str, detail: str, action: str = "dropped") -> FaultRow:
    """The row of a fault, after its warning."""
    message = f"client {client}, round {number}: {name} ({detail}); {action}"
    warnings.warn(message, ClientWarning, stacklevel=2)
    log.info(message)
    return FaultRow(number, client, name, action, detail)


def update_norm(state: Mapping[str, torch.Tensor], base: Mapping[str, torch.Tensor]) -> float:
    """Euclidean norm of `state - base` over floating-point tensors; a missing base counts as zero."""
    total = 0.0
    for name, tensor in state.items():
        if tensor.is_floating_point():
            change = tensor.double() - base[name].double() if name in base else tensor.double()
            total += float(torch.nan_to_num(change, posinf=0.0, neginf=0.0).pow(2).sum())  # masks hold infinities
    return math.sqrt(total)


def _shrunk(state: State, base: State, share: float) -> State:
    found = {}
    for name, tensor in state.items():
        if tensor.is_floating_point():
            start = base[name].double() if name in base else torch.zeros_like(tensor, dtype=torch.float64)
            moved = start + share * (tensor.double() - start)
            found[name] = torch.where(torch.isfinite(start), moved, start).to(tensor.dtype)
        else:
            found[name] = tensor
    return found


def _refusal(
    report: Report,
    asked: Mapping[str, Order],
    taken: Mapping[str, Report],
    reference: State,
    deadline: float | None,
) -> tuple[str, str] | None:
    """Name and detail of the first fault, or None."""
    if report.client not in asked:
        return "uninvited", "not among the clients of this round"
    if report.round != asked[report.client].round:
        return "late", f"answers round {report.round}"
    seconds = report.statistics.get("seconds", 0.0)
    if deadline is not None and seconds > deadline:
        return "late", f"{seconds:.3g} s, deadline {deadline:g} s"
    if report.client in taken:
        return "twice", "the first report counts"
    return _malformed(report.weights, reference, "weights") or _beside(report, asked[report.client], reference)


def _beside(report: Report, order: Order, reference: State) -> tuple[str, str] | None:
    """Faults of what comes beside the weights."""
    if report.control:
        like = {name: reference[name] for name in report.control if name in reference}
        found = _malformed(report.control, like, "control")
        if found is not None:
            return found
    for name, gram in report.moments.items():
        if gram.dim() != 2 or gram.shape[0] != gram.shape[1]:
            return "shape", f"moments of '{name}' {list(gram.shape)} are no square matrix"
        if not torch.isfinite(gram).all():
            return "not-finite", f"moments of '{name}'"
    for space, dictionary in report.dictionaries.items():
        owner, key = dictionary.metadata.get("client"), dictionary.metadata.get("space")
        if owner != report.client or key != space:
            return "foreign-dictionary", f"dictionary of space '{space}' belongs to client {owner}, space '{key}'"
        if any(not torch.isfinite(tensor).all() for tensor in dictionary.tensors.values()):
            return "not-finite", f"dictionary of space '{space}'"
    missing = [kind for kind in order.wants if not getattr(report, kind.removeprefix("input-"))]
    return ("architecture", f"{missing[0]} were asked for and are missing") if missing else None


def _malformed(state: State, reference: State, what: str) -> tuple[str, str] | None:
    differing = sorted(set(state) ^ set(reference))
    if differing:
        return "architecture", f"{what} differ at '{differing[0]}'"
    for name, tensor in state.items():
        like = reference[name]
        if tensor.shape != like.shape or tensor.dtype != like.dtype:
            return "shape", f"'{name}' is {list(tensor.shape)}, the server's {list(like.shape)}"
        if tensor.is_floating_point() and not bool((torch.isfinite(tensor) | ~torch.isfinite(like)).all()):
            return "not-finite", f"{what} '{name}'"
    return None
