"""What the command line prints after a comparison: who saw what, the table, where the page is."""

from __future__ import annotations

from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from featalign.report.compare import distance
from featalign.results import CompareResult

COLOURS = {"none": "", "neuron": "red", "feature": "cyan", "pool": "yellow"}


def comparison_table(result: CompareResult) -> None:
    """Print the label counts, the results over seeds and the paths of page, results and dictionaries."""
    console = Console()
    content = result.content
    if content["clients"][0]:
        counts = content["clients"][0]
        table = Table(
            "client",
            "samples",
            *(str(c) for c in range(len(counts[0]["counts"]))),
            title="Label counts, seed 0",
            box=SIMPLE,
            padding=(0, 0),
            pad_edge=False,
        )
        for column in table.columns:
            column.no_wrap, column.justify = True, "right"
        for member in counts:
            table.add_row(member["name"], str(member["samples"]), *(str(count) for count in member["counts"]))
        console.print(table)
    config = content["config"]
    title = f"Accuracy on test data, %: {config['seeds']} seed(s), mixing weight {config['mixing']:.3g}, no labels"
    table = Table("method", "mean", "std", "vs client", "vs ensemble", "seconds", title=title)
    table.columns[0].no_wrap = True
    for column in table.columns[1:]:
        column.justify = "right"
    kind = ""
    for name, row in result.to_frame().iterrows():
        if kind and row["kind"] != kind:
            table.add_section()
        kind = row["kind"]
        colour = COLOURS[content["methods"][name]["basis"]]
        table.add_row(
            f"[{colour}]{name}[/]" if colour else str(name),
            *(f"{100 * row[key]:.2f}" for key in ("accuracy", "std")),
            *(f"{100 * row[key]:+.2f}" for key in ("gap_to_best_client", "gap_to_ensemble")),
            f"{row['seconds']:.2f}",
        )
    console.print(table)
    for space, entry in content["spaces"].items():
        seed = entry["seeds"][0]
        console.print(
            f"space {space}: matched correlation [red]units {seed['neuron']['mean_correlation']:.2f}[/], "
            f"[cyan]features {seed['feature']['mean_correlation']:.2f}[/]; {seed['regime']['name']}: "
            f"{seed['regime']['explanation']}",
            highlight=False,
        )
    if explanation := distance(content):
        console.print(explanation, highlight=False)
    if result.folder is not None:
        console.print(f"\nreport        {_shown(result.folder / 'report.html')}", highlight=False, soft_wrap=True)
        console.print(f"results       {_shown(result.folder / 'results.json')}", highlight=False, soft_wrap=True)
        console.print(f"dictionaries  {_shown(result.saes or result.folder)}", highlight=False, soft_wrap=True)


def _shown(path: Path) -> Path:
    """Relative to where the user stands, if it is below."""
    path = path.resolve()
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
