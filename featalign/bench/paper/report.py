"""The results page: markdown from the files of the experiments, nothing typed in."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from featalign.bench.paper.registry import EXPERIMENTS, Experiment
from featalign.bench.paper.rows import PaperResult, Published
from featalign.errors import BadOption

if TYPE_CHECKING:
    import pandas as pd

HEAD = """# Fusion: OTFusion's experiments beside ours

Singh and Jaggi, *Model Fusion via Optimal Transport* (2020), experiment by experiment. Made by
`featalign bench paper report {folder}` from the files of the commands below; nothing is typed in.
`vanilla` averages weights as they are; `OT` aligns by transport first (the paper's methods, by activations or by
weights); `refitted` regresses every layer on unlabelled inputs, in closed form but for a readout that is fitted to what
the networks say together; `zip` reduces the units of all to the original width, then refits. The last column is the
mean seconds of one fusion by the clock, alignment included, as the machine was: shared with other work, many times what
a quiet one takes.
"""
WIDEST = 11  # abscissae in a table; of more, the ends and evenly spaced ones are shown


def page(folder: Path | str) -> str:
    """Markdown of all results in a folder, and what was not run; raises `CorruptFile`, `BadOption` where none are."""
    found = [PaperResult.load(path) for path in sorted(Path(folder).glob("*.json"))]
    if not found:
        raise BadOption(f"no results in '{folder}'; run featalign bench paper NAME --out '{folder}' first")
    order = list(EXPERIMENTS)
    found.sort(key=lambda result: (order.index(result.experiment), result.config["dataset"]))
    missing = [f"`{name}`" for name in order if name not in {result.experiment for result in found}]
    lines = [HEAD.format(folder=folder), *(section(result) for result in found)]
    if missing:
        lines.append(f"## Not run\n\nNo file for {', '.join(missing)}: not run yet.\n")
    return "\n".join(lines)


def section(result: PaperResult) -> str:
    """One experiment: question, command, a table per part, published values, deviations, costs."""
    entry, frame = EXPERIMENTS[result.experiment], result.to_frame()
    config, facts = result.config, result.facts
    lines = [
        f"## {entry.source}: {entry.question[0].lower()}{entry.question[1:]} ({config['dataset']})\n",
        f"`{result.command} --seeds {config['seeds']}`\n",
        f"Test accuracy in per cent, {_seeds(config['seeds'])}; "
        f"{config['probe']} unlabelled inputs, refits on {config['augmented']:,} made of them. "
        f"{facts['seconds']:.0f} s, at most {facts['peak_memory_gb']:.1f} GB.\n",
    ]
    for part in dict.fromkeys(frame["part"]):
        lines += [f"**{part}**, by {entry.axis}\n", table(frame[frame["part"] == part]), ""]
    lines += [*published(entry, frame, config["dataset"]), *(f"* Differs: {text}." for text in entry.deviations), ""]
    return "\n".join(lines)


def _seeds(count: int) -> str:
    return "one seed" if count == 1 else f"mean of {count} seeds with the half-width of its 95 % interval"


def table(frame: pd.DataFrame) -> str:
    """Rows by abscissa; the last column holds the mean seconds of a fusion."""
    places = sorted(frame["x"].dropna().unique())
    if len(places) > WIDEST:
        step = (len(places) - 1) / (WIDEST - 1)
        places = [places[round(k * step)] for k in range(WIDEST)]
    lines = [f"| | {' | '.join(f'{x:g}' for x in places) or 'value'} | s |", "|---" * (max(len(places), 1) + 2) + "|"]
    for row in dict.fromkeys(frame["row"]):
        chosen = frame[frame["row"] == row]
        if chosen["x"].isna().all():
            cells = [_cell(chosen)] + [""] * (len(places) - 1)
        else:
            cells = [_cell(chosen[chosen["x"] == x]) for x in places]
        seconds = chosen["seconds"].mean()
        lines.append(f"| {row} | {' | '.join(cells)} | {f'{seconds:.2f}' if seconds else ''} |")
    return "\n".join(lines)


def published(entry: Experiment, frame: pd.DataFrame, dataset: str) -> list[str]:
    """Published values beside ours; a line that says so where none was found."""
    known = [value for value in entry.published if value.dataset == dataset]
    if not known:
        return ["* Published: no number was found in the sources at hand that belongs beside a row."]
    return [_beside(value, frame) for value in known]


def _beside(value: Published, frame: pd.DataFrame) -> str:
    chosen = frame[(frame["part"] == value.part) & (frame["row"] == value.row)]
    if value.x is None and len(chosen):
        chosen = chosen.loc[[chosen["mean"].idxmax()]]
        ours = f"ours at its best mean, at {chosen['x'].item():g}: {_cell(chosen)}"
    else:
        ours = f"ours: {_cell(chosen[chosen['x'] == value.x])}"
    return f"* Published, {value.row} ({value.where}): {value.value:.2f}; {ours}."


def _cell(chosen: pd.DataFrame) -> str:
    if chosen.empty:
        return ""
    mean, interval = chosen["mean"].iloc[0], chosen["interval"].iloc[0]
    return f"{mean:.2f}" if interval != interval else f"{mean:.2f} ± {interval:.2f}"
