"""The figures of the comparison page, found through a registry: a new one is a decorated function in one file.

>>> @figure("seconds", section="Seconds")
... def seconds(result):                  # a CompareResult; returns a plotly Figure, or None where it has none
...     return px.bar(result.frames["rows"], x="seconds", y="row")
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from featalign.plots import compare as plots
from featalign.plots import fusion
from featalign.registry import Registry
from featalign.studies.result import over_seeds

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from featalign.studies.compare.result import CompareResult

Draw = Callable[..., "go.Figure | None"]


@dataclass(frozen=True)
class Entry:
    """A registered figure: drawn from the result (and a space, where there is one of each), below a section."""

    draw: Draw
    section: str
    each_space: bool


FIGURES: Registry[Entry] = Registry("figure")


def figure(name: str, section: str, each_space: bool = False) -> Callable[[Draw], Draw]:
    """Register `CompareResult -> Figure | None`, or `(CompareResult, space) -> Figure | None` for one of every space.

    The page shows it at the end of its section; a section that the page does not have is added.
    """

    def file(draw: Draw) -> Draw:
        FIGURES.register(name)(Entry(draw, section, each_space))
        return draw

    return file


def figures(result: CompareResult) -> dict[str, go.Figure]:
    """Every figure that the result has, by name; those of a space are `<space>/<name>`."""
    found: dict[str, go.Figure | None] = {}
    for name in FIGURES:
        entry = FIGURES[name]
        if entry.each_space:
            found |= {f"{space}/{name}": entry.draw(result, space) for space in spaces_of(result)}
        else:
            found[name] = entry.draw(result)
    return {name: drawn for name, drawn in found.items() if drawn is not None}


def spaces_of(result: CompareResult) -> list[str]:
    """The spaces in order."""
    return list(dict.fromkeys(result.frames["spaces"]["space"]))


def bases_of(result: CompareResult, space: str) -> list[str]:
    """The bases in which a space was matched in the first repetition."""
    return [basis for basis in ("neuron", "feature") if f"{space}/{basis}/correlation" in result.arrays]


@figure("scores", section="Scores")
def scores(result: CompareResult) -> Any:
    """The headline metric of every row."""
    frame, metric = result.headline(), result.metric
    if frame.empty:
        return None
    return plots.scores(frame, result.frames["rows"], metric.label, metric.scale, metric.higher_is_better)


@figure("mixing", section="Mixing weight")
def mixing(result: CompareResult) -> Any:
    """The headline metric along the mixing weight."""
    frame = result.frames["scores"]
    frame = frame[(frame["metric"] == result.metric.name) & frame["stage"].isin(["fused", "refit"])]
    if frame["mixing"].nunique() < 2:
        return None
    rows = result.frames["rows"]
    best, ensemble = result.best("client"), result.best("ensemble")
    named = {"best client": best, "best ensemble": ensemble}
    lines = {name: result.mean(row) for name, row in named.items() if row is not None}
    curves, rows = over_seeds(frame, ["row", "mixing"]), rows[rows["method"] != ""]
    return plots.mixing_curves(curves, rows, result.metric.label, result.metric.scale, lines)


@figure("plans", section="Spaces", each_space=True)
def plans(result: CompareResult, space: str) -> Any:
    """Who matches whom in both bases."""
    bases = bases_of(result, space)
    return plots.plans(result.arrays, space, bases) if bases else None


@figure("correlations", section="Spaces", each_space=True)
def correlations(result: CompareResult, space: str) -> Any:
    """Matched correlations against the null."""
    bases = bases_of(result, space)
    return plots.correlations(result.arrays, space, bases) if bases else None


@figure("fates", section="Features of the clients in the fused networks")
def fates(result: CompareResult) -> Any:
    """What became of every client's features, summed over spaces, mean over seeds."""
    frame = result.frames["fates"]
    return None if frame.empty else fusion.fates(frame)


@figure("polysemanticity", section="Polysemanticity")
def polysemanticity(result: CompareResult) -> Any:
    """What units carry, first repetition."""
    units = result.frames["units"]
    return None if units.empty else plots.polysemanticity(units[units["seed"] == units["seed"].min()])
