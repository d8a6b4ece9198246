"""Baselines for clients that were trained from one common start: what each learned since is added up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from featalign.errors import BadOption
from featalign.fuse.methods.registry import Proposal, fusion_method
from featalign.fuse.problem import FusionProblem
from featalign.fuse.rule import apply_rule, identity_alignment
from featalign.spaces.apply import rebuilt

Merge = Callable[[Sequence[torch.Tensor]], torch.Tensor]


@fusion_method("task-arithmetic", basis="none", needs=("equal-widths", "base"), follows_mixing=True, exact=False,
               default=False)  # fmt: skip
def task_arithmetic(problem: FusionProblem, *, scale: float = 0.4) -> Proposal:
    """Task arithmetic: the clients' changes since the common start, added up and scaled.

    `theta_0 + scale * K sum_k lambda_k (theta_k - theta_0)`: at equal weights every change enters `scale` times.
    Source: Ilharco et al. 2023, "Editing models with task arithmetic", section 2.
    """
    return _changed(problem, lambda changes: scale * len(changes) * _mixed(problem, changes))


@fusion_method("ties", basis="none", needs=("equal-widths", "base"), follows_mixing=True, exact=False, default=False)
def ties(problem: FusionProblem, *, density: float = 0.2, scale: float = 1.0) -> Proposal:
    """TIES: the largest changes of each client; where signs disagree, the mean of those with the heavier sign.

    `density`: share of each client's changes that is kept, by magnitude over all weights. `scale`: of the merged
    change. Source: Yadav et al. 2023, "TIES-merging: resolving interference when merging models", algorithm 1.
    """
    if not 0 < density <= 1:
        raise BadOption(f"density = {density} of 'ties'; give a share above 0, at most 1")

    def merged(changes: Sequence[torch.Tensor]) -> torch.Tensor:
        trimmed = torch.stack([_trimmed(change, density) for change in changes])
        weights = torch.tensor(problem.mixing, dtype=torch.float64)[:, None]
        sign = (weights * trimmed).sum(0).sign()
        agrees = weights * ((trimmed.sign() == sign) & (trimmed != 0))
        return scale * (agrees * trimmed).sum(0) / agrees.sum(0).clamp_min(1e-12)

    return _changed(problem, merged)


@fusion_method("slerp", basis="none", needs=("equal-widths",), follows_mixing=True, default=False)
def slerp(problem: FusionProblem) -> Proposal:
    """Spherical interpolation of the weights, tensor by tensor: the average without the loss of length.

    `sin((1 - t) w) / sin w a + sin(t w) / sin w b`, `w` the angle between the two; lengths are interpolated linearly.
    More than two clients are taken in one after the other. It needs no common start in its formula, and makes
    sense with one alone. Source: Shoemake 1985, "Animating rotation with quaternion curves".
    """
    average = _average(problem)
    parameters = [dict(client.named_parameters()) for client in problem.clients]
    state = dict(average.state_dict())
    for name in parameters[0]:
        total, found = 0.0, parameters[0][name].detach().double()
        for weight, own in zip(problem.mixing, parameters):
            total += weight
            if weight > 0:
                found = _between(found, own[name].detach().double(), weight / total)
        state[name] = found
    return _begun(problem, rebuilt(average, state))


def _between(a: torch.Tensor, b: torch.Tensor, share: float) -> torch.Tensor:
    """The point at `share` of the way from `a` to `b` along the great circle, lengths interpolated."""
    length_a, length_b = a.norm().clamp_min(1e-300), b.norm().clamp_min(1e-300)
    cosine = ((a / length_a) * (b / length_b)).sum().clamp(-1, 1)
    angle = cosine.arccos()
    if float(angle.sin()) < 1e-6:
        return torch.lerp(a, b, share)
    first, second = ((1 - share) * angle).sin() / angle.sin(), (share * angle).sin() / angle.sin()
    return (first * a / length_a + second * b / length_b) * torch.lerp(length_a, length_b, share)


def _trimmed(change: torch.Tensor, density: float) -> torch.Tensor:
    """The largest entries of a vector, the rest zero."""
    kept = max(1, round(density * len(change)))
    trimmed = torch.zeros_like(change)
    place = change.abs().topk(kept).indices
    trimmed[place] = change[place]
    return trimmed


def _mixed(problem: FusionProblem, changes: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.stack([weight * change for weight, change in zip(problem.mixing, changes)]).sum(0)


def _changed(problem: FusionProblem, merge: Merge) -> Proposal:
    """The common start with its parameters changed by what `merge` makes of the clients' changes, as flat vectors."""
    start: Any = problem.cohort.base
    own = {name: parameter.detach().double() for name, parameter in start.named_parameters()}
    changes = []
    for client in problem.clients:
        theirs = dict(client.named_parameters())
        changes.append(torch.cat([(theirs[name].detach().double() - first).flatten() for name, first in own.items()]))
    parts = merge(changes).split([first.numel() for first in own.values()])
    average = _average(problem)
    state = dict(average.state_dict())
    state |= {name: first + part.view_as(first) for (name, first), part in zip(own.items(), parts)}
    return _begun(problem, rebuilt(average, state))


def _average(problem: FusionProblem) -> nn.Module:
    return apply_rule(problem, (identity_alignment(problem),) * len(problem.cohort))


def _begun(problem: FusionProblem, module: nn.Module) -> Proposal:
    """A network in place of the average, to be repaired and refitted."""
    stay = identity_alignment(problem)
    return Proposal((stay,) * len(problem.cohort), module=module, complete=False)
