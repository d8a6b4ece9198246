"""`@fusion_method`: a registered function that chooses what every fused space holds; matchers are methods as well."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from featalign.align.feature import FeatureMatch
from featalign.align.maps import Alignment
from featalign.align.matchers import MATCHERS, Matcher, align
from featalign.errors import BadOption, UnknownName
from featalign.fuse.linear import Code
from featalign.fuse.needs import NEEDS, unmet
from featalign.fuse.problem import FusionProblem
from featalign.fuse.refit import Targets
from featalign.fuse.rule import identity_alignment
from featalign.options import bind_options, options_of
from featalign.registry import Registry

REFITS = ("optional", "required", "none")


@dataclass(frozen=True)
class Proposal:
    """What a method proposes: one alignment per client, targets for the refit, and what it saw on the way.

    Attributes:
        module: the fused network itself, where it is no average of moved clients; the rule, repair and refit are then
            left out, and the alignments tell how the clients relate.
        statistics: whether those of the fused network are to be corrected by the parents'; units that come whole from
            one client bring their own.
        complete: whether `module` is left as it is; else it takes the place of the rule's average, and repair and refit
            follow.
        codes: by linear space, what it is to hold where that is no linear function of what the clients hold.
    """

    alignments: tuple[Alignment, ...]
    targets: Targets | None = None
    exact_first: bool = True
    statistics: bool = True
    matches: Mapping[tuple[int, str], FeatureMatch] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)
    module: nn.Module | None = None
    complete: bool = True
    codes: Mapping[str, Code] = field(default_factory=dict)


@dataclass(frozen=True)
class Method:
    """A registered method.

    Attributes:
        function: `FusionProblem` (and options) to a `Proposal`.
        basis: "none", "neuron", "feature" or "pool".
        refit: whether the closed-form refit is "optional", "required" (no meaning before it) or "none".
        needs: names in `NEEDS` that the cohort must meet.
        follows_mixing: whether what it proposes depends on the mixing weights.
        exact: whether a network fused with itself comes back.
        default: whether it runs when no methods are named.
        options: `{name: (type, default)}`.
        summary: one line for tables.
        grid: candidates of the options that may be "auto".
    """

    function: Callable[..., Proposal]
    basis: str
    refit: str
    needs: tuple[str, ...]
    follows_mixing: bool
    exact: bool
    default: bool
    options: Mapping[str, tuple[Any, Any]]
    summary: str
    grid: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    @property
    def stages(self) -> tuple[bool, ...]:
        """The stages a table shows: without and with refit."""
        return {"optional": (False, True), "required": (True,), "none": (False,)}[self.refit]

    def bind(self, options: Mapping[str, Any], name: str) -> dict[str, Any]:
        """Options checked against the signature and converted; raises `BadOption` listing the known ones."""
        return bind_options(self.function, options, f"method '{name}'")


class MethodRegistry(Registry[Method]):
    """Fusion methods by name; every matcher is one of them, lifted to all spaces of all clients."""

    def __getitem__(self, name: str) -> Method:
        if name in MATCHERS and name not in self._entries:
            self._entries[name] = lifted(name, MATCHERS[name])
        if name not in self._entries:
            for other in MATCHERS:
                self._entries.setdefault(other, lifted(other, MATCHERS[other]))
        return super().__getitem__(name)

    def __contains__(self, name: object) -> bool:
        return name in self._entries or name in MATCHERS

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def names(self) -> list[str]:
        """Matchers first, then the methods that are more than a matcher."""
        return list(dict.fromkeys([*MATCHERS, *self._entries]))


METHODS = MethodRegistry("fusion method")


def fusion_method(
    name: str,
    *,
    basis: str,
    refit: str = "optional",
    needs: tuple[str, ...] = (),
    follows_mixing: bool = False,
    exact: bool = True,
    default: bool = True,
    grid: Mapping[str, tuple[Any, ...]] | None = None,
) -> Callable[[Callable[..., Proposal]], Callable[..., Proposal]]:
    """Register a function `FusionProblem -> Proposal`; keyword-only parameters are its options.

    Raises `BadOption` for an unknown kind of refit and `UnknownName` for an unknown need.
    """
    if refit not in REFITS:
        raise BadOption(f"method '{name}': refit='{refit}'; choices: {', '.join(REFITS)}")
    for need in needs:
        NEEDS[need]

    def file(function: Callable[..., Proposal]) -> Callable[..., Proposal]:
        if name in METHODS:
            raise UnknownName(f"fusion method '{name}' is registered already")
        summary = (function.__doc__ or "").strip().splitlines()[0]
        entry = Method(
            function, basis, refit, needs, follows_mixing, exact, default, options_of(function), summary, grid or {}
        )
        METHODS.register(name)(entry)
        return function

    return file


def lifted(name: str, entry: Matcher) -> Method:
    """The method that aligns every client to the reference by a matcher and averages."""

    def propose(problem: FusionProblem, **options: Any) -> Proposal:
        stay = identity_alignment(problem)
        alignments, matches = [], {}
        for k in range(len(problem.cohort)):
            if k == problem.reference:
                alignments.append(stay)
                continue
            clients = problem.pair(k)
            alignments.append(align(clients, name, **options))
            if "dictionaries" in entry.needs:
                matches.update({(k, space): clients.match(space) for space in clients.bases})
        return Proposal(tuple(alignments), matches=matches)

    propose.__wrapped__ = entry.function  # type: ignore[attr-defined] # its signature holds the options
    return Method(
        propose, entry.basis, entry.refit, entry.needs, False, entry.exact, entry.default, options_of(entry.function),
        entry.summary,
    )  # fmt: skip


def available(problem: FusionProblem) -> dict[str, str | None]:
    """Every registered method with None, or with the reason why the cohort does not allow it."""
    return {name: unmet(problem, METHODS[name].needs) for name in METHODS.names()}


def require(problem: FusionProblem, name: str) -> Method:
    """The method; raises `UnknownName`, or `BadOption` with the reason and the methods that are possible."""
    method = METHODS[name]
    reason = unmet(problem, method.needs)
    if reason is not None:
        able = ", ".join(other for other, why in available(problem).items() if why is None)
        raise BadOption(f"method '{name}' is not possible here: {reason}; possible: {able}")
    return method
