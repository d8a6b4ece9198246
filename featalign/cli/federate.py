"""`featalign federate`: rounds of federated learning, and FedAVOT's experiments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from featalign.cli.output import print_table
from featalign.errors import BadOption

federate = typer.Typer(help="Rounds of federated learning under several aggregations.", invoke_without_command=True)


@federate.callback()
def federate_command(
    context: typer.Context,
    config: Path = typer.Option(
        None, metavar="TOML", help="Clients, and a table runs.NAME per aggregation: fields of `FederateConfig`."
    ),
    resume: Path = typer.Option(None, metavar="DIR", help="Go on from the last complete round of the run in DIR."),
    out: Path = typer.Option(None, metavar="DIR", help="Folder of rounds, results and page.  [default: reports/...]"),
    rounds: int = typer.Option(None, help="Number of rounds, in place of the configuration's."),
    features: int = typer.Option(
        None, metavar="EVERY", help="Read features every so many rounds, in place of the configuration's."
    ),
    quiet: bool = typer.Option(False, "--quiet", help="No progress bars."),
) -> None:
    """Deal a data set to clients, run every aggregation round by round, write a page."""
    if context.invoked_subcommand is not None:
        return
    from featalign.studies.federate import FederateConfig
    from featalign.studies.federate import federate as run

    if (config is None) == (resume is None):
        raise BadOption("give either --config fed.toml or --resume DIR")
    if resume is not None:
        if out is not None or rounds is not None or features is not None:
            raise BadOption(
                "--resume goes on with the configuration in its folder; leave --out, --rounds and --features out"
            )
        result = run(None, resume, resume=True, progress=not quiet)
    else:
        import dataclasses

        read = FederateConfig.from_toml(config)
        given = {"rounds": rounds, "features": features}
        read = dataclasses.replace(read, **{name: value for name, value in given.items() if value is not None})
        result = run(read, out or Path("reports") / read.run_name, progress=not quiet)
    rows = result.to_frame().reset_index().to_dict(orient="records")
    print_table([{str(k): f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows])
    typer.echo(f"page: {result.folder}/report.html")


@federate.command("avot")
def federate_avot(
    problem: str = typer.Option("linear", help="linear or softmax (regression), or mlp (not convex)."),
    availability: str = typer.Option("restricted", help="restricted or coordinated."),
    dataset: str = typer.Option("digits", help="Data set of softmax regression."),
    users: int = typer.Option(40, help="Number of users."),
    present: int = typer.Option(2, help="Users who are present in a round."),
    rounds: int = typer.Option(4000, help="Rounds of every rule."),
    seeds: int = typer.Option(5, help="Repetitions."),
    importance: str = typer.Option("deliverable", help="deliverable, or uniform (which may be infeasible)."),
    decay: float = typer.Option(0.0, help="The step falls as round^-decay; 0 keeps it."),
    horizons: str = typer.Option(
        "", metavar="T,T,...", help="Fit the error over these numbers of rounds instead, with steps c / sqrt(T)."
    ),
    figure: Path = typer.Option(None, metavar="HTML", help="Write the figure here."),
) -> None:
    """FedAVOT against its rivals: feasibility first, then where each rule settles, or its rate over T."""
    from featalign.federated.avot import RULES, avot_experiment

    kinds: Any = {"problem": problem, "availability": availability, "importance": importance}
    if horizons:
        given = {**kinds, "dataset": dataset, "users": users, "present": present, "seeds": seeds}
        _rates(horizons, figure, given)
        return
    curves = avot_experiment(
        **kinds, dataset=dataset, users=users, present=present, rounds=rounds, seeds=seeds, decay=decay
    )
    for seed, law in enumerate(curves.feasibility):
        word = "feasible" if law["feasible"] else "infeasible"
        missed = f"smallest error {law['smallest_error']:.4g}"
        typer.echo(f"seed {seed}: {word}, deliverable mass {law['deliverable_mass']:.6g}, {missed}")
    if figure is not None:
        from featalign.plots.transport import avot

        avot(curves, RULES).write_html(figure, include_plotlyjs=True)
    rows = []
    for rule, label in RULES.items():
        floors = {f"step {step:g}": f"{curves.floors[rule][k]:.3g}" for k, step in enumerate(curves.steps)}
        rate = curves.rate(rule)
        rows.append({"rule": label, **floors, "slope": f"{rate.slope:.2f} ± {rate.slope_error:.2f}"})
    print_table(rows)


def _rates(horizons: str, figure: Path | None, given: dict[str, Any]) -> None:
    """Print the fitted rate of every rule."""
    from featalign.federated.avot import RULES, avot_rates

    try:
        counts = tuple(int(part) for part in horizons.split(","))
    except ValueError:
        raise BadOption(f"horizons = '{horizons}'; give numbers of rounds such as 250,500,1000") from None
    if len(counts) < 2 or min(counts) < 20:
        raise BadOption(f"horizons = '{horizons}'; give at least two numbers of rounds, of 20 and more")
    rates = avot_rates(horizons=counts, **given)
    if figure is not None:
        from featalign.plots.transport import avot_rates as drawn

        drawn(rates, RULES).write_html(figure, include_plotlyjs=True)
    rows = []
    for rule, label in RULES.items():
        found = rates.rate(rule)
        means = {f"T {count}": f"{value:.3g}" for count, value in zip(counts, rates.errors[rule].mean(axis=0))}
        slope, intercept = f"{found.slope:.2f} ± {found.slope_error:.2f}", f"{found.intercept:.2f}"
        rows.append({"rule": label, **means, "slope": slope, "intercept": f"{intercept} ± {found.intercept_error:.2f}"})
    print_table(rows)
