"""Closed-form, label-free refit of the affine layers of a fused network, from input to output.

Each layer is regressed from its inputs in the network *already fused below it* to a target pre-activation,
`argmin |X W^T - T|^2 + ridge |W - W0|^2`, where `W0` is the aligned average. Only second moments are accumulated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from featalign.align.maps import Alignment
from featalign.fuse.head import HEADS
from featalign.fuse.problem import FusionProblem, Held
from featalign.fuse.repair import re_estimate
from featalign.spaces import affine
from featalign.spaces.capture import evaluating
from featalign.spaces.graph import Layer, Site

Targets = Callable[[FusionProblem, Layer, Sequence[Held]], torch.Tensor]


@dataclass(frozen=True)
class LayerFit:
    """What the refit of one layer did: share of the target's energy explained before and after."""

    layer: str
    explained_before: float
    explained_after: float

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        return {"explained_before": self.explained_before, "explained_after": self.explained_after}


def map_targets(alignments: Sequence[Alignment]) -> Targets:
    """Targets of the fusion rule: `T = sum_k lambda_k (O_k h_k + shift_k)`, pre-activations moved by the out-maps."""

    def targets(problem: FusionProblem, layer: Layer, held: Sequence[Held]) -> torch.Tensor:
        total: Any = 0
        for weight, alignment, activations in zip(problem.mixing, alignments, held):
            if weight == 0:
                continue
            moved = activations[Site(layer.module, "out")].double()
            if layer.writes in alignment.maps:
                space_map = alignment.maps[layer.writes]
                moved = moved @ space_map.out.double().T
                moved = moved if space_map.shift is None else moved + space_map.shift.double()
            total = total + weight * moved
        return total

    return targets


def refit(
    problem: FusionProblem,
    fused: nn.Module,
    targets: Targets,
    exact_first: bool = True,
    ridge: float = 1e-2,
    head: str = "log-mixture",
) -> list[LayerFit]:
    """Refit the affine layers of `fused` in place.

    Args:
        targets: pre-activation targets of a layer from the clients' activations, `[samples, m]`.
        exact_first: layers that read the input and whose target is a linear map of it are exact already; skip them.
        ridge: relative to the mean diagonal of the Gram matrix.
        head: name in `HEADS` of the target of layers that write the output, or "none" to keep the rule's target.

    Convolutions are refitted on their patches; running statistics of batch normalisations are estimated again after
    every layer, because targets that average units vary less than the units did. Layers without a matrix form, and
    those whose outputs fill several spaces (the heads of an attention layer), keep the rule's weights.
    """
    modules = dict(fused.named_modules())
    spaces = {space.name: space for space in problem.graph.spaces}
    fits = []
    for layer in problem.graph.layers:
        module = modules[layer.module]
        if not affine.is_affine(module) or len(affine.matrix(module)) != spaces[layer.writes].size:
            continue
        writes_output = spaces[layer.writes].pinned
        if spaces[layer.reads].pinned and exact_first and not writes_output:
            continue
        use_head = writes_output and head != "none"
        fits.append(_refit_layer(problem, fused, module, layer, targets, HEADS[head] if use_head else None, ridge))
        re_estimate(fused, problem.refit_inputs)
    return fits


def _refit_layer(
    problem: FusionProblem,
    fused: nn.Module,
    module: nn.Module,
    layer: Layer,
    targets: Targets,
    head: Callable[..., torch.Tensor] | None,
    ridge: float,
) -> LayerFit:
    """Accumulate `X^T X` and `X^T (T - X W0^T)` over the refit inputs, solve, write the weights back."""
    gram: Any = 0
    residual: Any = 0
    energy = before = 0.0
    bias: Any = module.bias
    augmented = bias is not None
    initial = affine.matrix(module).double()
    if augmented:
        initial = torch.cat([initial, bias.detach().double()[:, None]], dim=1)
    for inputs, held, outputs in problem.activations():
        x = _inputs_of(fused, module, inputs)
        if augmented:
            x = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], dim=1)
        target = targets(problem, layer, held) if head is None else head(outputs, problem.mixing, problem.class_counts)
        error = target.double() - (x @ initial.float().T).double()
        gram = gram + (x.T @ x).double()
        residual = residual + (x.T @ error.float()).double()
        energy += float((target - target.mean(0)).pow(2).sum())
        before += float(error.pow(2).sum())
    scale = ridge * gram.diagonal().mean().clamp_min(1e-12)
    change = torch.linalg.solve(gram + scale * torch.eye(len(gram), dtype=gram.dtype), residual)
    after = before - 2 * float((change * residual).sum()) + float((change * (gram @ change)).sum())
    solution = initial + change.T
    affine.write(module, *((solution[:, :-1], solution[:, -1]) if augmented else (solution,)))
    energy = max(energy, 1e-30)
    return LayerFit(layer.module, 1 - before / energy, 1 - after / energy)


class _Reached(Exception):
    """Stops a forward pass once the input of the layer is known."""


def _inputs_of(fused: nn.Module, module: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    """Rows `[samples * positions, fan-in]` that one affine submodule multiplies; the forward pass stops there."""
    found: list[torch.Tensor] = []

    def hook(_module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        found.append(args[0].detach())
        raise _Reached

    handle = module.register_forward_pre_hook(hook)
    try:
        with evaluating(fused):
            fused(batch)
    except _Reached:
        pass
    finally:
        handle.remove()
    return affine.rows(module, found[0])
