"""What the command line prints after a comparison: who saw what, the table, where the page is."""

from __future__ import annotations

from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from featalign.studies.compare.result import CompareResult
from featalign.studies.compare.words import distance, matched, signed
from featalign.studies.result import records

COLOURS = {"neuron": "red", "feature": "cyan", "pool": "yellow"}


def print_result(result: CompareResult) -> None:
    """Print the label counts, the results over seeds and the paths of page, results and dictionaries."""
    console = Console()
    _counts(result, console)
    console.print(_scores(result))
    skipped = result.frames["methods"]
    for reason, group in skipped[~skipped["available"]].groupby("reason", sort=False):
        names = ", ".join(group["method"])
        console.print(f"[dim]not run: {escape(names)} ({escape(str(reason))})[/]", highlight=False, soft_wrap=True)
    if words := matched(result):
        console.print(f"matched correlation by space: {escape(words)}", highlight=False)
    first = result.frames["spaces"].drop_duplicates("space")
    for row in records(first[first["regime"].notna()]):
        console.print(f"{escape(row.space)}, {row.regime}: {escape(row.explanation)}", highlight=False)
    if explanation := distance(result):
        console.print(escape(explanation), highlight=False)
    for note in result.facts["notes"]:
        console.print(f"note: {escape(note)}", highlight=False)
    if result.folder is not None:
        places = {"report": result.folder / "report.html", "results": result.folder / "results.json"}
        if result.saes is not None:
            places["dictionaries"] = result.saes
        for name, path in places.items():
            console.print(f"{name:13} {escape(str(_shown(path)))}", highlight=False, soft_wrap=True)


def _counts(result: CompareResult, console: Console) -> None:
    frame = result.frames["clients"]
    frame = frame[(frame["seed"] == frame["seed"].min()) & frame["label"].notna()]
    if frame.empty:
        return
    labels = list(dict.fromkeys(frame["label"]))
    table = Table(
        "client", "samples", *map(escape, labels), title="Label counts", box=SIMPLE, padding=(0, 0), pad_edge=False
    )
    for column in table.columns:
        column.no_wrap, column.justify = True, "right"
    for client, group in frame.groupby("client", sort=False):
        counts = group.set_index("label")["count"]
        table.add_row(str(client), str(group["samples"].iloc[0]), *(str(counts.get(name, 0)) for name in labels))
    console.print(table)


def _scores(result: CompareResult) -> Table:
    metric, seeds = result.metric, len(result.seeds)
    direction = "" if metric.higher_is_better else ", lower is better"
    weight = f"weight of the first client {result.facts['mixing']:.3g}"
    title = f"{metric.label} on evaluation data{direction}: {seeds} seed(s), {weight}, no labels"
    spread = ["std"] if seeds > 1 else []
    table = Table(
        "network", "mean" if spread else metric.name, *spread, "vs client", "vs ensemble", "seconds", title=title
    )
    table.columns[0].no_wrap = True
    for column in table.columns[1:]:
        column.justify = "right"
    kind = ""
    for name, row in result.to_frame().iterrows():
        if kind and row["kind"] != kind:
            table.add_section()
        kind = row["kind"]
        colour = COLOURS.get(row["basis"], "")
        table.add_row(
            f"[{colour}]{escape(str(name))}[/]" if colour else escape(str(name)),
            metric.shown(row[metric.name]),
            *([metric.shown(row["std"])] if spread else []),
            *(signed(metric, row[key]) for key in ("to_best_client", "to_ensemble")),
            f"{row['seconds']:.2f}",
        )
    return table


def _shown(path: Path) -> Path:
    """Relative to where the user stands, if it is below."""
    path = path.resolve()
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
