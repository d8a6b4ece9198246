"""Statistic repair of a fused network: averaging units that agree only in part shrinks their variance, layer by layer.

Affine layers are rescaled so that each unit has the mean and standard deviation interpolated from the parents (REPAIR,
Jordan et al. 2023). Batch normalisations have their running statistics corrected by the same comparison: what the fused
network shows on the probe against what the parents show there. A network fused with itself is left as it is.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from featalign.align.maps import ROTATIONS, Alignment
from featalign.data.batch import unwrap
from featalign.data.inputs import Inputs
from featalign.errors import ProbeError
from featalign.fuse.problem import FusionProblem
from featalign.fuse.walk import Walk, passing_order
from featalign.spaces import affine
from featalign.spaces.apply import gains
from featalign.spaces.capture import evaluating, kept, stream, units_last
from featalign.spaces.graph import Layer, Site
from featalign.spaces.moments import Moments

DEEP = 10  # affine layers from which repair is on unless the user says otherwise
SMALL = 1e-8  # standard deviation of a unit that is constant
KEPT = 0.5  # share of its outputs' variance that a client keeps under the probe's statistics, where these can be used


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


class Statistics:
    """The parents' means and standard deviations in the reference basis, interpolated by the mixing weights.

    Attributes:
        norms: batch normalisations that keep running statistics, with the space that each sees.
        trusted: whether the probe's statistics may be used for them at all: where a client falls apart under them, the
            probe is not like its training data and says nothing of them.
    """

    def __init__(self, problem: FusionProblem, fused: nn.Module, alignments: Sequence[Alignment]):
        self.problem, self.alignments = problem, alignments
        kind = nn.modules.batchnorm._BatchNorm
        owner = {axis.parameter: space.name for space in problem.graph.spaces for axis in space.writers}
        self.norms = {
            name: owner.get(f"{name}.running_mean", "")
            for name, part in fused.named_modules()
            if isinstance(part, kind) and part.track_running_stats and part.running_mean is not None
        }
        self._found: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self.trusted = not self.norms or problem.memory.get(
            "survives", (*problem.clients, problem.cohort.probe), lambda: survive(problem.clients, problem.cohort.probe)
        )

    def of(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation `[m]`, float64, of what a batch normalisation reads."""
        if not self._found and self.norms:
            places = {norm: (Site(norm, "in"), space) for norm, space in self.norms.items()}
            self._found = interpolated(self.problem, self.alignments, places, self.problem.cohort.refit_inputs)
        return self._found[name]


def survive(modules: Sequence[nn.Module], probe: Inputs) -> bool:
    """Whether every network keeps `KEPT` of its outputs' variance when normalisations take the probe's statistics."""
    for module in modules:
        twin = copy.deepcopy(module)
        norms: list[Any] = [part for part in twin.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
        for part in norms:
            part.reset_running_stats()
            part.momentum = None
        with evaluating(twin):
            for part in norms:
                part.train()
            for batch in probe:
                batch.run(twin)
        change, energy = 0.0, 0.0
        for batch in probe:
            with evaluating(module), evaluating(twin):
                own, other = (unwrap(batch.run(each)).double() for each in (module, twin))
            change += float((other - own).pow(2).sum())
            energy += float((own - own.mean(0)).pow(2).sum())
        if change > (1 - KEPT) * energy:
            return False
    return True


def interpolated(
    problem: FusionProblem, alignments: Sequence[Alignment], places: dict[str, tuple[Site, str]], inputs: Any
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Mean and standard deviation of the parents at each place `(site, space)`, moved and mixed.

    Rows of an out-map that are empty take no part: a unit that comes from one client has that client's statistics.
    """
    total: dict[str, list[Any]] = {name: [0.0, 0.0, 0.0] for name in places}
    for weight, client, alignment in zip(problem.mixing, problem.clients, alignments):
        if weight == 0:
            continue
        moments = {name: Moments() for name in places}
        for _, held in stream(client, inputs.batched(256), [site for site, _ in places.values()]):
            for name, (site, _) in places.items():
                if site in held:
                    moments[name].update(held[site])
        for name, (_, space) in places.items():
            mean, deviation = moments[name].mean, moments[name].variance.sqrt()
            share = torch.ones_like(mean)
            if space in alignment.maps:
                out = alignment.maps[space].out.double()
                turned = problem.graph[space].symmetry in ROTATIONS and _rigid(out)  # only the total is known then
                mean, deviation = out @ mean, _together(deviation, len(out)) if turned else gains(out) @ deviation
                share = (out.abs().sum(1) > 0).double()
            entry = total[name]
            total[name] = [entry[0] + weight * mean, entry[1] + weight * deviation, entry[2] + weight * share]
    return {name: (mean, deviation / share.clamp_min(1e-12)) for name, (mean, deviation, share) in total.items()}


def correct_norm(norm: nn.Module, inputs: Iterable[torch.Tensor], mean: torch.Tensor, deviation: torch.Tensor) -> None:
    """Correct running statistics in place by what `inputs` show against what the parents show on the same probe.

    `running_mean += found - mean`, `running_var *= (found / deviation)^2`: the probe's own peculiarities cancel.
    """
    part: Any = norm
    moments = Moments()
    for value in inputs:
        moments.update(units_last(value, True))
    spread = moments.variance.sqrt()
    ratio = torch.where(deviation > SMALL, spread / deviation.clamp_min(SMALL), torch.ones_like(spread))
    part.running_mean.add_((moments.mean - mean).to(part.running_mean))
    part.running_var.mul_(ratio.pow(2).to(part.running_var))


def repair(problem: FusionProblem, fused: nn.Module, alignments: Sequence[Alignment]) -> list[LayerRepair]:
    """Repair the statistics of `fused` in place on the problem's probe, from the parents' moved by their alignments.

    Layers are corrected from input to output, each on what the corrected layers below it deliver. Layers that write
    the output, or a space they do not fill, or that run more than once, are left alone; with batch normalisation all
    affine layers are, and its running statistics are corrected, unless the probe is unlike the clients' data
    (`Statistics.trusted`). Raises `ProbeError` for fewer than two samples.
    """
    probe = problem.cohort.probe
    if len(probe) < 2:
        raise ProbeError(f"a probe of {len(probe)} samples has no variance; give at least two")
    statistics = Statistics(problem, fused, alignments)
    if not statistics.trusted:
        return []
    if statistics.norms:
        places = {name: (Site(name, "in"), space) for name, space in statistics.norms.items()}
    else:
        places = {layer.module: (Site(layer.module), layer.writes) for layer in repairable(problem, fused)}
    targets = interpolated(problem, alignments, places, probe) if places else {}
    order = passing_order(fused, problem.cohort.example, [Site(name, "in") for name in places])
    report = []
    with Walk(fused, probe.batched(256), order) as walk:
        for site in order:
            name, part = site.module, fused.get_submodule(site.module)
            mean, deviation = targets[name]
            values = (stop.value for stop in walk.at(site))
            if statistics.norms:
                correct_norm(part, values, mean, deviation)
                continue
            moments, convolution = Moments(), isinstance(part, nn.modules.conv._ConvNd)
            with torch.no_grad():
                for stop in walk.at(site):  # padded tokens do not count, as with the parents
                    moments.update(units_last(kept(part.forward(stop.value), stop.batch.mask), convolution))
            found = (moments.mean, moments.variance.sqrt())
            report.append(_describe(name, found, mean, deviation))
            if problem.graph[places[name][1]].symmetry in ROTATIONS:  # no unit is special: one factor for all
                found, deviation = (found[0], _together(found[1], len(mean))), _together(deviation, len(mean))
            _rescale(part, found, mean, deviation)
    return report


def _rigid(out: torch.Tensor) -> bool:
    """Whether a map `[m, n]` is orthogonal, by rows or by columns."""
    gram = out @ out.T if len(out) <= out.shape[1] else out.T @ out
    return bool(torch.allclose(gram, torch.eye(len(gram), dtype=gram.dtype, device=gram.device), atol=1e-6))


def _together(deviation: torch.Tensor, units: int) -> torch.Tensor:
    """`[units]`: the total variance shared out evenly."""
    return (deviation.pow(2).sum() / units).sqrt().expand(units)


def repairable(problem: FusionProblem, fused: nn.Module) -> list[Layer]:
    """Affine layers with a bias that run once and write all of a hidden space that is not inside attention heads."""
    graph, result = problem.graph, []
    for layer in problem.graph.layers:
        module: Any = fused.get_submodule(layer.module)
        whole = affine.is_affine(module) and len(affine.matrix(module)) == graph[layer.writes].size
        once = layer.calls == 1 and problem.paired_rows(layer)
        free = not (graph[layer.writes].pinned or graph[layer.writes].is_gauge)
        if whole and once and free and module.bias is not None:
            result.append(layer)
    return result


def _rescale(
    module: nn.Module, found: tuple[torch.Tensor, torch.Tensor], mean: torch.Tensor, deviation: torch.Tensor
) -> None:
    """Fold the correction into weight and bias: `w s`, `(b - mean_found) s + mean`; constant units are only shifted."""
    layer: Any = module
    alive = (found[1] > SMALL) & (deviation > SMALL)
    scale = torch.where(alive, deviation / found[1].clamp_min(SMALL), torch.ones_like(deviation))
    weight = affine.matrix(layer).double() * scale[:, None]
    bias = (layer.bias.detach().double() - found[0]) * scale + mean
    affine.write(layer, weight.to(layer.weight.dtype), bias.to(layer.bias.dtype))


def _describe(
    name: str, found: tuple[torch.Tensor, torch.Tensor], mean: torch.Tensor, deviation: torch.Tensor
) -> LayerRepair:
    alive = deviation > SMALL
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
