"""The fuse step of a round: reports to one network, by any registered method."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from featalign.clients.cohort import Cohort
from featalign.data.batch import unwrap
from featalign.data.inputs import Inputs
from featalign.errors import BadOption
from featalign.federated.federation import Federation
from featalign.federated.messages import Report, State
from featalign.fuse import METHODS, FusionProblem, solve
from featalign.fuse.choose import head_of
from featalign.fuse.moments import INPUTS, gromov_alignments, moment_refit, synthetic_probe
from featalign.fuse.rule import apply_rule
from featalign.options import check
from featalign.spaces import canonical
from featalign.spaces.capture import evaluating

SYNTHETIC = 1000  # inputs drawn where there is no public probe to be as large as
BASES = ("dictionaries", "transcoders")


@dataclass(frozen=True)
class Fusing:
    """How reports become one network.

    Attributes:
        method, options: a registered fusion method and its options.
        refit: no, on the public probe (true), or from the clients' moments alone ("moments").
        repair: of statistics; None as `fuse.solve` decides, and off for plain averages in rounds.
        head, ridge: of the refit.
        reference: None, or the index of the report into whose basis the others are moved.
        calibrate: solve the readout of the fused network from sums over the clients, in a second exchange; "masked"
            sends summands that only their sum can be read from.
        probe: the federation's ("public"), or drawn from Gaussians of the clients' inputs ("synthetic").
        match: by the method, or units by Gromov transport between the clients' Gram matrices ("gromov").
    """

    method: str = "vanilla"
    options: Mapping[str, Any] = field(default_factory=dict)
    refit: bool | Literal["moments"] = False
    repair: bool | None = None
    head: str | None = None
    ridge: float = 1e-2
    reference: int | None = None
    calibrate: bool | Literal["masked"] = False
    probe: Literal["public", "synthetic"] = "public"
    match: Literal["method", "gromov"] = "method"

    def __post_init__(self) -> None:
        check(self)
        bound = METHODS[self.method].bind(self.options, self.method)
        object.__setattr__(self, "options", bound)
        if self.refit == "moments" and METHODS[self.method].refit != "optional":
            raise BadOption(f"method '{self.method}' cannot be refitted from moments: its targets want a probe")
        if self.match == "gromov" and (self.method != "vanilla" or self.refit is True):
            raise BadOption("match='gromov' aligns averages ('vanilla') and is refitted from moments or not at all")

    @classmethod
    def of(cls, given: str | tuple[str, Mapping[str, Any]] | Fusing) -> Fusing:
        """From a method's name, or `(name, options)` whose entries may be fields of `Fusing` too."""
        if isinstance(given, Fusing):
            return given
        name, options = (given, {}) if isinstance(given, str) else given
        names = [item.name for item in dataclasses.fields(cls) if item.name not in ("method", "options")]
        ours = {key: options[key] for key in names if key in options}
        return cls(name, {key: value for key, value in options.items() if key not in ours}, **ours)

    @property
    def wants(self) -> tuple[str, ...]:
        """Kinds that clients send besides weights."""
        found = ["moments"] if self.refit == "moments" or self.match == "gromov" else []
        found += ["input-moments"] if self.probe == "synthetic" else []
        return (*found, *(["dictionaries"] if set(BASES) & set(METHODS[self.method].needs) else []))


def fuse_reports(
    federation: Federation,
    fusing: Fusing,
    reports: Sequence[Report],
    mixing: np.ndarray,
    server: State,
    shared: bool,
    seed: int = 0,
) -> State:
    """State of the network that the reports are fused into.

    With a shared start all are moved into the basis of the server's network, which takes no part in the average; with
    independent starts, and for methods that want dictionaries, into that of the client with the most samples. A plain
    average of networks in which nothing is to be folded is taken directly: the same numbers as the rule's.

    Raises what `fuse.solve` raises, and `BadOption` where a fused network does not fit the clients' layout.
    """
    gromov = fusing.match == "gromov"
    if fusing.method == "vanilla" and not fusing.refit and not fusing.repair and shared and not gromov:
        fusing = dataclasses.replace(fusing, repair=False)
        if _unfolded(federation):
            return average([report.weights for report in reports], mixing, server)
    with_server = shared and fusing.reference is None and "dictionaries" not in fusing.wants and not gromov
    modules = [_loaded(federation, report.weights) for report in reports]
    weights = tuple(float(weight) for weight in mixing / mixing.sum())
    reference = fusing.reference
    if with_server:
        modules, weights, reference = [*modules, _loaded(federation, server)], (*weights, 0.0), -1
    elif reference is None:
        reference = int(np.argmax([report.statistics.get("samples", 0.0) for report in reports]))
    problem = _problem(federation, fusing, reports, modules, weights, reference, seed)
    moments = fusing.refit == "moments"
    if gromov:
        told = [report.moments for report in reports]
        alignments = gromov_alignments(problem, told)
        module = apply_rule(problem, alignments)
        if moments:
            moment_refit(problem, module, alignments, told, fusing.ridge)
        return _in_layout(federation, problem.cohort.restore(module))
    regressed = bool(fusing.refit) and not moments
    head = head_of(problem, again=True) if shared and regressed and fusing.head is None else fusing.head
    result = solve(
        problem, fusing.method, refit=regressed, repair=False if moments else fusing.repair, head=head,
        ridge=fusing.ridge, **fusing.options,
    )  # fmt: skip
    if moments:
        sent = [report.moments for report in reports] + [{}] * with_server
        moment_refit(problem, result.module, result.alignments, sent, fusing.ridge)
    return _in_layout(federation, problem.cohort.restore(result.module))


def average(states: Sequence[State], mixing: np.ndarray, like: State) -> State:
    """`sum_k lambda_k W_k` in float64; integer buffers and entries that are not finite are those of `like`."""
    found = {}
    for name, kind in like.items():
        if not kind.is_floating_point():
            found[name] = kind.clone()
            continue
        total: Any = 0
        for weight, state in zip(mixing, states):
            if weight > 0:
                total = total + float(weight) * state[name].double()
        finite = torch.isfinite(kind)
        found[name] = (total if bool(finite.all()) else torch.where(finite, total, kind.double())).to(kind.dtype)
    return found


def _problem(
    federation: Federation,
    fusing: Fusing,
    reports: Sequence[Report],
    modules: Sequence[nn.Module],
    weights: tuple[float, ...],
    reference: int,
    seed: int,
) -> FusionProblem:
    names = [report.client for report in reports] + ["server"] * (len(modules) - len(reports))
    probe = _drawn(federation, reports, weights, seed) if fusing.probe == "synthetic" else _probe(federation, fusing)
    cohort = Cohort.of(modules, probe, None, federation.task, names=names, seed=seed)
    bases = {
        space: tuple(report.dictionaries[space] for report in reports)
        for space in (reports[0].dictionaries if "dictionaries" in fusing.wants else {})
    }
    transcoding = "transcoders" in METHODS[fusing.method].needs
    return FusionProblem(cohort, weights, reference, {} if transcoding else bases, bases if transcoding else {})


def _drawn(federation: Federation, reports: Sequence[Report], weights: Sequence[float], seed: int) -> Inputs:
    """A probe drawn from what the clients told of their inputs; as many as the public one has, where there is one."""
    samples = SYNTHETIC if federation.probe is None else len(federation.probe)
    shape = federation.example.tensors[0].shape[1:]
    grams = [report.moments[INPUTS] for report in reports]
    number = reports[0].round
    return Inputs.of(synthetic_probe(grams, weights[: len(reports)], shape, samples, 1000 * seed + number))


def _probe(federation: Federation, fusing: Fusing) -> Inputs:
    """The public probe; where there is none, noise of the inputs' shape, for methods that look at weights alone."""
    if federation.probe is not None:
        return federation.probe
    blind = ("vanilla", "ot-wts", "weight-matching", "procrustes-wts")
    if fusing.method not in blind or fusing.refit is True or fusing.repair:
        raise BadOption(
            f"method '{fusing.method}' looks at activations and the federation has no probe; pass probe=, or choose "
            f"{', '.join(blind)} with refit='moments' or none"
        )
    example = federation.example
    return Inputs.of(example.args[0] if len(example.args) == 1 and not example.kwargs else [example.example])


def _loaded(federation: Federation, state: State) -> nn.Module:
    module = federation.make(0)
    module.load_state_dict(state)
    return module.eval()


def _unfolded(federation: Federation) -> bool:
    """Whether `Cohort` takes the networks as they are."""
    module = federation.make(0).eval()
    return canonical(module, federation.example.on(module).example).module is module


def _in_layout(federation: Federation, fused: nn.Module) -> State:
    """The fused state, checked to say the same in the clients' own layout (tied weights may not)."""
    state = fused.state_dict()
    module = federation.make(0)
    example = federation.example
    try:
        module.load_state_dict(state)
        with evaluating(module), evaluating(fused):
            mine, theirs = unwrap(example.run(module)), unwrap(example.run(fused))
        same = torch.allclose(mine, theirs, rtol=1e-3, atol=1e-4)
    except RuntimeError:
        same = False
    if not same:
        raise BadOption(
            "the fused network does not fit the clients' layout (weights that are tied, or another width); untie them "
            "or fuse by 'vanilla'"
        )
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
