"""Statistic repair of a fused network: averaging units that agree only in part shrinks their variance, layer by layer.

Networks with batch normalisation get its running statistics estimated again; every other affine layer is rescaled so
that each unit has the mean and standard deviation interpolated from the parents (REPAIR, Jordan et al. 2023).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from featalign.align.maps import Alignment
from featalign.data.inputs import Inputs
from featalign.errors import ProbeError
from featalign.fuse.problem import FusionProblem
from featalign.spaces import affine
from featalign.spaces.apply import gains
from featalign.spaces.capture import evaluating, stream, units_last
from featalign.spaces.graph import Layer, Site
from featalign.spaces.moments import Moments

DEEP = 10  # affine layers from which repair is on unless the user says otherwise


@dataclass(frozen=True)
class LayerRepair:
    """What repair found in one layer.

    Attributes:
        layer: the module, as `named_modules` spells it.
        spread_before: median over units of the fused standard deviation relative to the parents' (1 is healthy; it
            falls towards zero where averaged units disagree).
        shift_before: median distance of the means in parents' standard deviations.
    """

    layer: str
    spread_before: float
    shift_before: float

    def to_dict(self) -> dict[str, float]:
        """Plain numbers."""
        return {"spread_before": self.spread_before, "shift_before": self.shift_before}


def is_deep(problem: FusionProblem) -> bool:
    """Whether repair is on by default."""
    return len(problem.graph.layers) >= DEEP


def batch_norms(module: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """Batch normalisations that keep running statistics."""
    kind = nn.modules.batchnorm._BatchNorm
    return [part for part in module.modules() if isinstance(part, kind) and part.track_running_stats]


def re_estimate(module: nn.Module, inputs: Inputs | torch.Tensor, batch_size: int = 500) -> int:
    """Estimate the running statistics of every batch normalisation again, in place; returns how many there are.

    Statistics are means over batches of those of each batch, which is what training would converge to.
    """
    norms = batch_norms(module)
    if not norms:
        return 0
    momenta = [norm.momentum for norm in norms]
    with evaluating(module):
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # cumulative average
            norm.train()
        for batch in Inputs.of(inputs).batched(batch_size):
            batch.run(module)
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum
    return len(norms)


def repair(problem: FusionProblem, fused: nn.Module, alignments: Sequence[Alignment]) -> list[LayerRepair]:
    """Repair the statistics of `fused` in place on the problem's probe, from the parents' moved by their alignments.

    Layers are corrected in one pass from input to output, each on what the corrected layers below it deliver. Layers
    that write the output, or a space they do not fill, are left alone. With batch normalisation the affine layers are
    left alone and the running statistics estimated again. Raises `ProbeError` for a probe of fewer than two samples.
    """
    if len(problem.probe) < 2:
        raise ProbeError(f"a probe of {len(problem.probe)} samples has no variance; give at least two")
    if batch_norms(fused):
        re_estimate(fused, problem.probe)
        return []
    layers = repairable(problem, fused)
    targets = _targets(problem, layers, alignments)
    found: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    handles = [
        fused.get_submodule(layer.module).register_forward_hook(
            _normalised(*targets[layer.module], layer.module, found)
        )
        for layer in layers
    ]
    try:
        with evaluating(fused):
            fused(problem.probe)
    finally:
        for handle in handles:
            handle.remove()
    report = []
    for layer in layers:
        mean, deviation = targets[layer.module]
        report.append(_describe(layer.module, found[layer.module], mean, deviation))
        _rescale(fused.get_submodule(layer.module), found[layer.module], mean, deviation)
    return report


def repairable(problem: FusionProblem, fused: nn.Module) -> list[Layer]:
    """Affine layers with a bias that write all of a hidden space."""
    graph, result = problem.graph, []
    for layer in problem.graph.layers:
        module: Any = fused.get_submodule(layer.module)
        whole = affine.is_affine(module) and len(affine.matrix(module)) == graph[layer.writes].size
        if whole and not graph[layer.writes].pinned and module.bias is not None:
            result.append(layer)
    return result


def _targets(
    problem: FusionProblem, layers: Sequence[Layer], alignments: Sequence[Alignment]
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Interpolated mean and standard deviation `[m]` of every layer's outputs in the reference basis, float64."""
    total: dict[str, tuple[Any, Any]] = {layer.module: (0, 0) for layer in layers}
    sites = [Site(layer.module) for layer in layers]
    for weight, client, alignment in zip(problem.mixing, problem.clients, alignments):
        if weight == 0:
            continue
        moments = {site: Moments() for site in sites}
        for _, held in stream(client, problem.probe, sites, batch_size=256):
            for site, activations in held.items():
                moments[site].update(activations)
        for layer, site in zip(layers, sites):
            mean, deviation = moments[site].mean, moments[site].variance.sqrt()
            if layer.writes in alignment.maps:
                space_map = alignment.maps[layer.writes]
                mean = space_map.out.double() @ mean
                deviation = gains(space_map.out.double()) @ deviation
            before = total[layer.module]
            total[layer.module] = (before[0] + weight * mean, before[1] + weight * deviation)
    return total


def _normalised(
    mean: torch.Tensor, deviation: torch.Tensor, name: str, found: dict[str, tuple[torch.Tensor, torch.Tensor]]
) -> Any:
    """Hook that notes a layer's statistics and passes on outputs that have the wanted ones."""

    def hook(module: nn.Module, _args: Any, out: torch.Tensor) -> torch.Tensor:
        convolution = isinstance(module, nn.modules.conv._ConvNd)
        moments = Moments().update(units_last(out, convolution))
        found[name] = (moments.mean, moments.variance.sqrt())
        scale = deviation / found[name][1].clamp_min(1e-8)
        shape = (1, -1, *[1] * (out.dim() - 2)) if convolution else (-1,)
        return (out - found[name][0].view(shape).to(out)) * scale.view(shape).to(out) + mean.view(shape).to(out)

    return hook


def _rescale(
    module: nn.Module, found: tuple[torch.Tensor, torch.Tensor], mean: torch.Tensor, deviation: torch.Tensor
) -> None:
    """Fold the correction into weight and bias: `w s`, `(b - mean_found) s + mean`."""
    layer: Any = module
    scale = deviation / found[1].clamp_min(1e-8)
    weight = affine.matrix(layer).double() * scale[:, None]
    bias = (layer.bias.detach().double() - found[0]) * scale + mean
    affine.write(layer, weight.to(layer.weight.dtype), bias.to(layer.bias.dtype))


def _describe(
    name: str, found: tuple[torch.Tensor, torch.Tensor], mean: torch.Tensor, deviation: torch.Tensor
) -> LayerRepair:
    alive = deviation > 1e-8
    if not alive.any():
        return LayerRepair(name, float("nan"), float("nan"))
    spread = (found[1][alive] / deviation[alive]).median()
    shift = ((found[0] - mean)[alive].abs() / deviation[alive]).median()
    return LayerRepair(name, float(spread), float(shift))


def output_statistics(
    module: nn.Module, mean: torch.Tensor, covariance: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation `[out]` of an affine layer from moments of its inputs, without any data.

    Args:
        mean, covariance: `[fan-in]`, `[fan-in, fan-in]` of `affine.rows` (patches for convolutions).
    """
    layer: Any = module
    weight = affine.matrix(layer).double()
    centre = weight @ mean.double()
    if layer.bias is not None:
        centre = centre + layer.bias.detach().double()
    return centre, torch.einsum("of,fg,og->o", weight, covariance.double(), weight).clamp_min(0).sqrt()


def repair_from_moments(
    module: nn.Module,
    mean: torch.Tensor,
    covariance: torch.Tensor,
    target_mean: torch.Tensor,
    target_deviation: torch.Tensor,
) -> LayerRepair:
    """REPAIR of one layer in closed form, in place, where only moments of its inputs may be shared."""
    found = output_statistics(module, mean, covariance)
    _rescale(module, found, target_mean.double(), target_deviation.double())
    return _describe(type(module).__name__, found, target_mean.double(), target_deviation.double())
