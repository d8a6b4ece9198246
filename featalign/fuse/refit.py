"""Closed-form, label-free refit of the affine maps of a fused network, from input to output.

Each map is regressed, from what it receives in the network *already fused below it*, to what is still missing where its
output lands: `argmin |X D^T - (T - S)|^2 + ridge |D|^2`, `D` the change of the weight, `S` what the fused network holds
there and `T` what the clients say it should. Behind a sum (a residual stream) `S` is the whole stream so far, so that
later layers mend the errors of earlier ones. Only second moments are accumulated, and a sample for readouts that a loss
is fitted by from there (`readout`). Batch normalisations on the way have their statistics corrected before anything
above them is solved, unless the method brings its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from featalign.align.activations import Held
from featalign.align.heads import gauged
from featalign.align.maps import Alignment
from featalign.data.inputs import Inputs
from featalign.data.task import answers
from featalign.fuse.linear import Code
from featalign.fuse.problem import FusionProblem
from featalign.fuse.readout import Loss, Sample, readout_target
from featalign.fuse.repair import Statistics, correct_norm
from featalign.fuse.walk import PAUSED_BATCHES, Stop, Walk, passing_order
from featalign.fuse.writers import Writer, written
from featalign.spaces import affine
from featalign.spaces.apply import pieces_of
from featalign.spaces.capture import kept, units_last
from featalign.spaces.graph import Layer, Site

FAINT = 1e-6  # gain of a normalisation below which nothing that is written passes
RARE = 1e-3  # added to probabilities as weights, so that outputs nobody expects are told as well
LARGE = 50_000_000  # numbers in one Gram matrix per output, above which all errors count alike
HEAD_RIDGE = 0.3
EVIDENCE_RIDGE = 1e-3
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
    targets: Targets | None = None,
    exact_first: bool = True,
    ridge: float = 1e-2,
    head: str | None = None,
    statistics: bool = True,
    head_ridge: float | None = None,
    codes: Mapping[str, Code] | None = None,
) -> list[LayerFit]:
    """Refit the affine maps of `fused` in place.

    Args:
        alignments: what `fused` was made with: targets are `sum_k lambda_k (O_k h_k + shift_k)`, what the clients hold
            at the same place moved by their out-maps.
        targets: pre-activation targets `[samples, m]` of a layer from the clients' activations, in place of these.
        exact_first: layers that read the input and whose target is a linear map of it are exact already; skip them.
        ridge: relative to the mean diagonal of the Gram matrix.
        head: one of the task's readout targets (its first by default), or "none" for the rule's.
        statistics: correct batch normalisations by the parents' statistics on the way.
        head_ridge: of the readout. Where answers are right or wrong `HEAD_RIDGE` by default: what counts is the side
            of a boundary, and a readout that follows the targets less closely errs on fewer inputs it has not seen.
            Evidence, which is smooth and far from what the rule's weights say, is followed with `EVIDENCE_RIDGE`.
        codes: by linear space, what it is to hold of the clients' activations, in place of the out-maps' sum.

    Maps that run more than once, or whose rows are ordered differently by every client, keep the rule's weights. The
    task's target is for layers whose output is the network's output; others that write a pinned space keep the rule's.
    """
    if head_ridge is None:
        head_ridge = max(ridge, HEAD_RIDGE) if answers(problem.cohort.task) else ridge
        head_ridge = min(ridge, EVIDENCE_RIDGE) if head == "evidence" else head_ridge
    return _Refit(problem, fused, alignments, targets, (ridge, head_ridge), head, statistics, codes or {}).run(
        exact_first
    )


class _Refit:
    """The state of one refit."""

    def __init__(
        self,
        problem: FusionProblem,
        fused: nn.Module,
        alignments: Sequence[Alignment],
        targets: Targets | None,
        ridges: tuple[float, float],
        head: str | None,
        statistics: bool,
        codes: Mapping[str, Code],
    ):
        self.problem, self.fused, self.targets = problem, fused, targets
        self.ridges, self.head, self.alignments, self.codes = ridges, head, alignments, codes
        found = Statistics(problem, fused, alignments) if statistics else None
        self.statistics = found if found is not None and found.trusted else None
        self.taking = [k for k, weight in enumerate(problem.mixing) if weight > 0]
        self.pieces = {k: pieces_of(problem.graphs[k], alignments[k].maps) for k in self.taking}

    def run(self, exact_first: bool) -> list[LayerFit]:
        """Stage by stage, in the order in which they are passed."""
        problem, stages = self.problem, self._stages(exact_first)
        norms = [] if self.statistics is None else [Site(name, "in") for name in self.statistics.norms]
        order = passing_order(self.fused, problem.cohort.example, [*stages, *norms])
        inputs = _batched(problem.cohort.refit_inputs, problem.activations.batch_size)
        notes = {writer.reads for site in order for writer in stages.get(site, ())}
        parents = [Walk(self._parent(k), inputs, stages) for k in (() if self.targets else self.taking)]
        fits: list[LayerFit] = []
        with Walk(self.fused, inputs, order, notes) as walk:
            try:
                for parent in parents:
                    parent.__enter__()
                for place, site in enumerate(order):
                    if site in stages:
                        fits.append(self._fit(walk, parents, site, stages[site]))
                        later = {writer.reads for other in order[place + 1 :] for writer in stages.get(other, ())}
                        walk.forget({writer.reads for writer in stages[site]} - later)
                    elif self.statistics is not None:
                        values = (stop.value for stop in walk.at(site))
                        correct_norm(self.fused.get_submodule(site.module), values, *self.statistics.of(site.module))
            finally:
                for parent in parents:
                    parent.__exit__(None, None, None)
        return fits

    def _parent(self, client: int) -> nn.Module:
        """A client with the bases inside its heads turned like the reference's: the maps take it from there."""
        return gauged(self.problem.clients[client], self.problem.graphs[client], self.alignments[client].gauge)

    def _stages(self, exact_first: bool) -> dict[Site, list[Writer]]:
        """Maps to be solved together, by where they land; with given targets every layer on its own."""
        graph, stages = self.problem.graph, {}  # type: ignore[var-annotated]
        for writer in self.problem.writers:
            layer = next((each for each in graph.layers if each.module == writer.name), None)
            coded = written(graph, writer) in self.codes
            exact = exact_first and not writer.readout and not coded and self.problem.reads_input(writer)
            if writer.calls != 1 or exact or not self.problem.paired(writer):
                continue
            if self.targets is None:
                stages.setdefault(writer.lands, []).append(writer)
                continue
            name = written(graph, writer)
            moved = self.alignments[self.problem.reference].maps.get(name or "")
            size = len(moved.out) if moved is not None else graph[name].size if name else 0
            whole = size == len(writer.matrix(self.fused))  # no half of a gate
            if layer is not None and whole:
                stages[writer.own] = [writer]
        return stages

    def _fit(self, walk: Walk, parents: list[Walk], site: Site, writers: list[Writer]) -> LayerFit:
        """Solve the maps that land at a site, write them back, correct what waits there."""
        by_share, by_loss = self._counts_by_share(writers[0]), self._by_loss(writers[0])
        ridge = self.ridges[writers[0].readout and self.head != "none"]
        stage = _Stage(self.fused, site, writers, ridge, by_share, by_loss)
        for stop, target in zip(walk.at(site), self._wanted(parents, site, writers)):
            stage.add(stop, target)
        fit = stage.solve()
        if walk.waiting:
            for stop in walk.at(site):
                stage.correct(stop)
        return fit

    def _counts_by_share(self, writer: Writer) -> bool:
        """Whether errors of a readout count as the probability that each output stands for.

        So it is in log-mixtures of tasks that are scored in nats: to second order their regression is that of the
        cross-entropy. Accuracy is served better by errors that count alike.
        """
        task, matrix = self.problem.cohort.task, writer.matrix(self.fused)
        mixture = (self.head or task.heads[0]) == "log-mixture" and not answers(task)
        return writer.readout and mixture and len(matrix) > 1 and matrix.numel() * matrix.shape[1] <= LARGE

    def _by_loss(self, writer: Writer) -> tuple[Loss, Sample] | None:
        """The loss that a readout's head is fitted by, if it is, and an empty sample to fit it on."""
        problem = self.problem
        if not writer.readout or self.head not in problem.cohort.task.fitted_heads:
            return None
        return problem.cohort.task.head_loss, Sample(len(problem.cohort.refit_inputs))

    def _wanted(self, parents: list[Walk], site: Site, writers: list[Writer]) -> Iterator[torch.Tensor]:
        """Targets `[rows, m]` of every batch."""
        problem, writer = self.problem, writers[0]
        readout = writer.readout and self.head != "none"
        if self.targets is not None:
            layer = next(each for each in problem.graph.layers if each.module == writer.name)
            for batch, held, outputs in problem.activations:
                if readout:
                    convolves = writer.convolves(self.fused)
                    rows = [units_last(kept(out, batch.mask), convolves) for out in outputs]
                    yield readout_target(problem, rows, self.head)
                else:
                    yield self.targets(problem, layer, held)
            return
        for stops in zip(*(parent.at(site) for parent in parents)):
            rows = [_rows(stop, writer, self.fused) for stop in stops]
            if readout:
                yield readout_target(problem, rows, self.head, self.taking)
            else:
                yield self._moved(rows, site, writer)

    def _moved(self, rows: list[torch.Tensor], site: Site, writer: Writer) -> torch.Tensor:
        problem = self.problem
        landing = written(problem.graph, writer)
        if landing is not None and landing in self.codes:
            sizes = [graph[landing].size for graph in problem.graphs]
            parts = [rows[0].new_zeros(len(rows[0]), size) for size in sizes]
            for k, values in zip(self.taking, rows):
                parts[k] = values
            return self.codes[landing](parts)
        total: Any = 0
        for k, values in zip(self.taking, rows):
            name = written(problem.graphs[k], writer)
            space_map = self.alignments[k].maps.get(name) if name else None
            if site == writer.own or space_map is None:
                part = writer.moved(values, problem.clients[k], self.pieces[k])
            else:
                part = values.double() @ space_map.out.double().T
            if space_map is not None and space_map.shift is not None:
                part = part + space_map.shift.double()
            total = total + problem.mixing[k] * part
        return total  # type: ignore[no-any-return]


def _batched(inputs: Inputs, size: int) -> Inputs:
    """Batches of that size, or so many more inputs that all batches may wait inside the network."""
    return inputs.batched(max(size, -(-len(inputs) // PAUSED_BATCHES))) if inputs.sized else inputs


def _rows(stop: Stop, writer: Writer, module: nn.Module) -> torch.Tensor:
    """What waits at a site as `[rows, units]`, without padded tokens."""
    value, outs = kept(stop.value, stop.batch.mask), len(writer.outs)
    if outs > 1:
        return value.flatten(-outs).reshape(-1, value.shape[-outs:].numel())
    return units_last(value, writer.convolves(module))


class _Stage:
    """Moments of the maps that land at one site: `X^T X` and `X^T (T - S)` of their rows side by side."""

    def __init__(
        self,
        fused: nn.Module,
        site: Site,
        writers: list[Writer],
        ridge: float,
        by_share: bool = False,
        by_loss: tuple[Loss, Sample] | None = None,
    ):
        self.fused, self.site, self.writers, self.ridge, self.by_share = fused, site, writers, ridge, by_share
        self.by_loss = by_loss
        self.gains = [writer.gain(fused) for writer in writers]
        self.takes_bias = [w.bias is not None or bool(w.norms) for w in writers]
        self.augmented = any(self.takes_bias)
        self.gram: Any = 0
        self.residual: Any = 0
        self.energy = self.before = 0.0

    def add(self, stop: Stop, target: torch.Tensor) -> None:
        """A batch."""
        error = target.double() - _rows(stop, self.writers[0], self.fused).double()
        inputs = [kept(stop.noted[writer.reads], stop.batch.mask) for writer in self.writers]
        inputs = [x.float() if x.dtype.itemsize < 4 else x for x in inputs]
        first = self.writers[0]
        if self.by_loss is not None:
            self.by_loss[1].add(stop.batch.size, self._rows(inputs), target - error, target)
        if len(self.writers) == 1 and first.layered and first.convolves(self.fused):
            layer = first.layer(self.fused)
            gram = affine.gram(layer, inputs[0], self.augmented)
            residual = affine.cross(layer, inputs[0], error, self.augmented)
        else:
            x = self._rows(inputs)
            if self.by_share:
                shares = (target.softmax(1) + RARE).to(x.dtype)
                gram = torch.stack([(x.T * share) @ x for share in shares.T]).double()
                residual = (x.T @ (shares * error).to(x.dtype)).double()
            else:
                gram, residual = (x.T @ x).double(), (x.T @ error.to(x.dtype)).double()
        self.gram, self.residual = self.gram + gram, self.residual + residual
        counted = target.softmax(1) + RARE if self.by_share else 1.0
        self.energy += float((counted * (target - target.mean(0)).pow(2)).sum())
        self.before += float((counted * error.pow(2)).sum())

    def _rows(self, inputs: list[torch.Tensor]) -> torch.Tensor:
        """What all maps multiply, side by side, with ones for the bias."""
        rows = [writer.rows(self.fused, x) for writer, x in zip(self.writers, inputs)]
        return torch.cat([*rows, *([rows[0].new_ones(len(rows[0]), 1)] if self.augmented else [])], 1)

    def solve(self) -> LayerFit:
        """Solve and write back."""
        gram, residual = self.gram, self.residual
        scale = self.ridge * gram.diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(1e-12)[..., None, None]
        ridged = gram + scale * torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        if self.by_share:
            change = torch.linalg.solve(ridged, residual.T[:, :, None])[:, :, 0].T
            fitted = torch.einsum("ofg,go->fo", gram, change)
        else:
            change = torch.linalg.solve(ridged, residual)
            if self.by_loss is not None:
                change = self.by_loss[1].change(self.by_loss[0], change, self.ridge)
            fitted = gram @ change
        after = self.before - 2 * float((change * residual).sum()) + float((change * fitted).sum())
        sizes = [writer.matrix(self.fused).shape[1] for writer in self.writers]
        parts = list(change[: sum(sizes)].split(sizes))
        offset = change[-1] if self.augmented else None
        self.changes = []
        for writer, gain, part, takes in zip(self.writers, self.gains, parts, self.takes_bias):
            part = part if gain is None else torch.where(gain.abs() > FAINT, part / gain, torch.zeros_like(part))
            mine, offset = (offset, None) if takes else (None, offset)
            self._write(writer, gain, part.T, mine)
            self.changes.append((writer, gain, part.T, mine))
        energy = max(self.energy, 1e-30)
        name = "+".join(writer.name for writer in self.writers)
        return LayerFit(name, 1 - self.before / energy, 1 - after / energy)

    def _write(self, writer: Writer, gain: Any, change: torch.Tensor, offset: torch.Tensor | None) -> None:
        bias = writer.offset(self.fused)
        if bias is not None and offset is not None:
            scaled = (
                offset if gain is None else torch.where(gain.abs() > FAINT, offset / gain, torch.zeros_like(offset))
            )
            bias = bias.double() + scaled
        elif offset is not None:
            norm: Any = self.fused.get_submodule(writer.norms[-1])
            with torch.no_grad():
                if norm.bias is not None:
                    norm.bias.add_(offset.to(norm.bias))
                else:
                    norm.running_mean.sub_((offset * (norm.running_var + norm.eps).sqrt()).to(norm.running_mean))
        writer.write(self.fused, writer.matrix(self.fused).double() + change, bias)

    def correct(self, stop: Stop) -> None:
        """Add to what waits what the new weights would have added."""
        total: Any = 0
        for writer, gain, change, offset in self.changes:
            x = stop.noted[writer.reads]
            y = writer.rows(self.fused, x.float() if x.dtype.itemsize < 4 else x)
            y = (y @ change.to(y.dtype).T).double()
            y = y if gain is None else y * gain
            total = total + (y if offset is None else y + offset)
        value = stop.value
        if self.writers[0].convolves(self.fused) and value.dim() > 2:
            total = total.reshape(*value.movedim(1, -1).shape).movedim(-1, 1)
        value.add_(total.reshape(value.shape).to(value))
