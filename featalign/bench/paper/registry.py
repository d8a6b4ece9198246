"""`@experiment`: a registered function that yields the rows of one repetition; keyword-only parameters are options."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featalign import storage
from featalign.bench.paper.lab import Lab
from featalign.bench.paper.rows import PaperResult, Published, Row
from featalign.options import bind_options, options_of
from featalign.registry import Registry

Function = Callable[..., Iterator[Row]]


@dataclass(frozen=True)
class Experiment:
    """An experiment of the paper.

    Attributes:
        function: `Lab` and seed (and options) to rows.
        source: where the paper has it.
        question: what it asks, in one line.
        axis: what the abscissa is.
        published: values of the paper; empty where none was found that belongs beside a row.
        deviations: how ours differs.
    """

    function: Function
    source: str
    question: str
    axis: str
    published: tuple[Published, ...] = ()
    deviations: tuple[str, ...] = ()


EXPERIMENTS: Registry[Experiment] = Registry("experiment")


def experiment(
    name: str,
    *,
    source: str,
    axis: str,
    published: tuple[Published, ...] = (),
    deviations: tuple[str, ...] = (),
) -> Callable[[Function], Function]:
    """Register a function `Lab, seed -> rows`; the first line of its docstring is the question."""

    def file(function: Function) -> Function:
        question = (function.__doc__ or "").strip().splitlines()[0].rstrip(".")
        EXPERIMENTS.register(name)(Experiment(function, source, question, axis, published, deviations))
        return function

    return file


def run(
    name: str,
    lab: Lab | None = None,
    seeds: int = 5,
    options: Mapping[str, Any] | None = None,
    out: Path | str | None = None,
    command: str = "",
) -> PaperResult:
    """Run an experiment over seeds; what is there after each seed is written to `out`.

    Trained networks are cached and shared between experiments, so that an interrupted run goes on from them. Raises
    `UnknownName` for the experiment and `BadOption` for an option that it does not have.
    """
    entry, lab = EXPERIMENTS[name], lab or Lab()
    bound = bind_options(entry.function, options or {}, f"experiment '{name}'")
    defaults = {key: value for key, (_, value) in options_of(entry.function).items()}
    config = storage.plain({**lab.to_dict(), "seeds": seeds, **defaults, **bound})
    rows: list[Row] = []
    began = time.perf_counter()
    result = PaperResult(name, command, config, ())
    for seed in range(seeds):
        rows += entry.function(lab, seed, **bound)
        facts = {
            "seconds": round(time.perf_counter() - began, 1),
            "peak_memory_gb": round(_peak_memory(), 2),
            **storage.versions(),
        }
        result = PaperResult(name, command, {**config, "seeds": seed + 1}, tuple(rows), facts)
        if out is not None:
            save(result, out)
    return result


def save(result: PaperResult, folder: Path | str) -> Path:
    """Write `<experiment>-<data set>.json` and the figure beside it."""
    from featalign.plots.paper import experiment_figure

    entry = EXPERIMENTS[result.experiment]
    stem = f"{result.experiment}-{result.config['dataset']}"
    path = storage.write_json(Path(folder) / f"{stem}.json", result.to_dict())
    figure = experiment_figure(result.to_frame(), f"{entry.source}: {entry.question}", entry.axis)
    storage.write_bytes(Path(folder) / f"{stem}.html", figure.to_html(include_plotlyjs=True).encode("utf-8"))
    return path


def _peak_memory() -> float:
    """Resident memory of this process at its largest, in GB."""
    import resource
    import sys

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
