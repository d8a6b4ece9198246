"""Closed-form, label-free refit of the affine layers of a fused network, from input to output.

Each layer is regressed from its inputs in the network *already fused below it* to a target pre-activation,
`argmin |X W^T - T|^2 + ridge |W - W0|^2`, where `W0` is the aligned average. Only second moments are accumulated. Batch
normalisations on the way have their statistics corrected before anything above them is solved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from featalign.align.activations import Held
from featalign.align.maps import Alignment
from featalign.data.batch import unwrap
from featalign.errors import BadOption
from featalign.fuse.problem import FusionProblem
from featalign.fuse.repair import Statistics, correct_norm
from featalign.fuse.walk import Walk, running_order
from featalign.spaces import affine
from featalign.spaces.capture import evaluating, kept, units_last
from featalign.spaces.graph import Layer, Site

AGREED = 1e-4  # relative difference of outputs up to which clients say the same
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
            moved = activations[Site(layer.module)].double()
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
    alignments: Sequence[Alignment],
    targets: Targets,
    exact_first: bool = True,
    ridge: float = 1e-2,
    head: str | None = None,
) -> list[LayerFit]:
    """Refit the affine layers of `fused` in place.

    Args:
        alignments: what `fused` was made with; they move the parents' statistics of batch normalisations.
        targets: pre-activation targets of a layer from the clients' activations, `[samples, m]`.
        exact_first: layers that read the input and whose target is a linear map of it are exact already; skip them.
        ridge: relative to the mean diagonal of the Gram matrix.
        head: one of the task's readout targets (its first by default), or "none" to keep the rule's target.

    Convolutions are refitted on their patches. Layers without a matrix form, those whose outputs fill several spaces
    (the heads of an attention layer) and those that run more than once keep the rule's weights. The task's target is
    for layers whose output is the network's output; others that write a pinned space keep the rule's.
    """
    if not (ridge > 0 and ridge < float("inf")):
        raise BadOption(f"ridge = {ridge}; give a positive finite number, relative to each layer's Gram matrix")
    layers = {layer.module: layer for layer in refittable(problem, fused)}
    readouts = readout_layers(problem)
    statistics = Statistics(problem, fused, alignments)
    order = running_order(fused, problem.cohort.example, [*layers, *statistics.norms])
    skipped = {
        name
        for name, layer in layers.items()
        if exact_first and name not in readouts and problem.graph[layer.reads].pinned
    }
    wanted = [name for name in order if name not in skipped]
    activations = problem.activations
    inputs = problem.cohort.refit_inputs.batched(activations.batch_size)
    fits = []
    with Walk(fused, inputs, [fused.get_submodule(name) for name in wanted]) as walk:
        for name in wanted:
            module = fused.get_submodule(name)
            if name in statistics.norms:
                correct_norm(module, walk.at(module), *statistics.of(name))
                continue
            layer = layers[name]
            used = head if name in readouts else "none"
            pairs = _pairs(problem, walk, module, layer, targets, used)
            fits.append(_solve(name, module, pairs, ridge))
    return fits


def refittable(problem: FusionProblem, fused: nn.Module) -> list[Layer]:
    """Affine layers that run once, write all of their space and have rows that correspond between clients."""
    spaces = {space.name: space for space in problem.graph.spaces}
    found = []
    for layer in problem.graph.layers:
        module = fused.get_submodule(layer.module)
        if layer.calls != 1 or not problem.paired_rows(layer):
            continue
        if affine.is_affine(module) and len(affine.matrix(module)) == spaces[layer.writes].size:
            found.append(layer)
    return found


def readout_layers(problem: FusionProblem) -> set[str]:
    """Layers whose output on the example *is* the network's output."""
    client, graph = problem.clients[problem.reference], problem.graph
    names = [layer.module for layer in graph.layers if layer.calls == 1 and graph[layer.writes].pinned]
    seen: dict[str, torch.Tensor] = {}
    handles = [
        client.get_submodule(name).register_forward_hook(lambda _m, _a, out, n=name: seen.__setitem__(n, out))
        for name in names
    ]
    try:
        with evaluating(client):
            outputs = unwrap(problem.cohort.example.run(client))
    finally:
        for handle in handles:
            handle.remove()
    return {
        name
        for name, out in seen.items()
        if isinstance(out, torch.Tensor) and out.shape == outputs.shape and torch.equal(out, outputs)
    }


def readout_target(problem: FusionProblem, outputs: Sequence[torch.Tensor], head: str | None) -> torch.Tensor:
    """The task's target `[rows, outputs]` from the clients' outputs; where all clients say the same, just that.

    Source of the default for classes: the logarithm of the averaged softmax, `log sum_k lambda_k softmax(z_k)`.
    """
    taking = [(weight, out.double()) for weight, out in zip(problem.mixing, outputs) if weight > 0]
    mean = torch.stack([weight * out for weight, out in taking]).sum(0)
    apart = torch.stack([(out - taking[0][1]).abs().amax(-1) for _, out in taking]).amax(0)
    agreed = apart <= AGREED * taking[0][1].abs().amax(-1)
    target = problem.cohort.task.head_target(outputs, problem.mixing, problem.cohort.class_counts, head)
    return torch.where(agreed[:, None], mean, target.double())


def _pairs(
    problem: FusionProblem, walk: Walk, module: nn.Module, layer: Layer, targets: Targets, head: str | None
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """`(rows that the layer multiplies, targets)` for every batch."""
    convolution = isinstance(module, nn.modules.conv._ConvNd)
    for (batch, held, outputs), value in zip(problem.activations, walk.at(module)):
        if head == "none":
            target = targets(problem, layer, held)
        else:
            target = readout_target(problem, [units_last(kept(out, batch.mask), convolution) for out in outputs], head)
        yield affine.rows(module, kept(value, batch.mask)), target


def _solve(name: str, module: nn.Module, pairs: Iterator[tuple[torch.Tensor, torch.Tensor]], ridge: float) -> LayerFit:
    """Accumulate `X^T X` and `X^T (T - X W0^T)`, solve, write the weights back."""
    gram: Any = 0
    residual: Any = 0
    energy = before = 0.0
    bias: Any = module.bias
    augmented = bias is not None
    initial = affine.matrix(module).double()
    if augmented:
        initial = torch.cat([initial, bias.detach().double()[:, None]], dim=1)
    for x, target in pairs:
        x = x.float() if x.dtype.itemsize < 4 else x
        if augmented:
            x = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype, device=x.device)], dim=1)
        error = target.double() - (x @ initial.to(x.dtype).T).double()
        gram = gram + (x.T @ x).double()
        residual = residual + (x.T @ error.to(x.dtype)).double()
        energy += float((target - target.mean(0)).pow(2).sum())
        before += float(error.pow(2).sum())
    scale = ridge * gram.diagonal().mean().clamp_min(1e-12)
    change = torch.linalg.solve(gram + scale * torch.eye(len(gram), dtype=gram.dtype, device=gram.device), residual)
    after = before - 2 * float((change * residual).sum()) + float((change * (gram @ change)).sum())
    solution = initial + change.T
    affine.write(module, *((solution[:, :-1], solution[:, -1]) if augmented else (solution,)))
    energy = max(energy, 1e-30)
    return LayerFit(name, 1 - before / energy, 1 - after / energy)
