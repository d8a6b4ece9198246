"""What each way of aggregating asks of clients, and what it reaches: weights, moments, sums, a probe real or drawn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Any

from featalign.errors import BadOption
from featalign.federated.messages import Failure, Order, Report
from featalign.federated.rounds import InProcess, drive
from featalign.federated.server import Server
from featalign.fuse.moments import INPUTS
from featalign.studies.federate.config import FederateConfig
from featalign.studies.federate.run import federation_of

if TYPE_CHECKING:
    import pandas as pd

    from featalign.federated import Federation, Local

ROUNDS: Mapping[str, Mapping[str, Any]] = {
    "weights (FedAvg)": {},
    "weights (FedProx)": {"algorithm": "fedprox"},
    "public probe": {"refit": True},
    "synthetic probe": {"refit": True, "probe_kind": "synthetic"},
    "moments only": {"refit": "moments"},
    "readout from sums": {"calibrate": True},
    "readout from masked sums": {"calibrate": "masked"},
    "moments, readout from sums": {"refit": "moments", "calibrate": True},
}
AVERAGE = "weights, position by position"
ENSEMBLES: Mapping[str, str | None] = {  # by the target of a readout that they say
    "ensemble of all clients": None,
    "ensemble of all clients, by evidence": "evidence",
}
ONE_SHOT: Mapping[str, Mapping[str, Any]] = {
    AVERAGE: {},
    "Gromov on Gram matrices": {"match": "gromov"},
    "Gromov on Gram matrices, refit from moments": {"match": "gromov", "refit": "moments"},
    "public probe, aligned and refitted": {"fuse": "ot-acts", "refit": True},
    "public probe, zip": {"fuse": "zip"},
    "public probe, zip and refit": {"fuse": "zip", "refit": True},
    "public probe, zip, readout from sums": {"fuse": "zip", "calibrate": True},
}
COLUMNS = [
    "seed", "unit", "start", "mode", "noise", "kinds", "kB up", "value", "late", "rounds to 90 %", "why not",
]  # fmt: skip
NOISE = (0.001, 0.01, 0.1)
NOISY = ("moments only", "readout from sums")


def modes(
    config: FederateConfig,
    epochs: int = 10,
    noise: Sequence[float] = NOISE,
    only: Sequence[str] = (),
    federation: Federation | None = None,
    progress: bool = False,
) -> pd.DataFrame:
    """A row per mode: rounds from a shared start, the same with noise on moments, one shot from independent starts.

    Args:
        config: of clients, network and rounds, without runs of its own.
        epochs: of local training before one-shot fusion (rounds train one epoch); where the recipe counts steps, so
            many times these.
        noise: standard deviations, in units of each Gram matrix's mean diagonal.
        only: modes to run; all by default. Raises `BadOption` for another name.
        federation: in place of the one that `config` describes.
        progress: show which mode was last, and what it reached.

    Columns: seed, unit (of the headline metric), start, mode, noise, kinds (that go up), kB up (per client and round),
    value (headline metric on the test set after the last round), late (mean over the last five rounds), rounds to 90 %
    (of shares), why not (a mode does not apply).
    """
    import pandas as pd
    from tqdm.auto import tqdm

    known = {*ROUNDS, *ONE_SHOT, *ENSEMBLES}
    if unknown := [name for name in only if name not in known]:
        raise BadOption(f"no mode '{unknown[0]}'; modes: {', '.join(sorted(known))}")
    federation = federation or federation_of(config)
    config = replace(config, watch=0)
    facts, rows = {"seed": config.seed, "unit": federation.task.metric.unit}, []
    plans = _rounds(federation, config, noise, only or ROUNDS), _one_shot(federation, config, epochs, only or known)
    with tqdm(desc=f"modes, seed {config.seed}", unit=" modes", disable=not progress, leave=False) as bar:
        for row in chain(*plans):
            rows.append({**facts, **row})
            bar.update()
            bar.set_postfix_str(f"{row['mode']}: {federation.task.metric.shown(row.get('value'))}")
    return pd.DataFrame(rows, columns=COLUMNS)


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation over the seeds of `modes`, a row per start, mode and noise."""
    grouped = frame.reindex(columns=COLUMNS).groupby(["start", "mode", "noise"], sort=False)
    return grouped.agg(
        unit=("unit", "first"),
        seeds=("seed", "nunique"),
        kinds=("kinds", "first"),
        kB_up=("kB up", "mean"),
        value=("value", "mean"),
        value_std=("value", "std"),
        late=("late", "mean"),
        rounds_to_90=("rounds to 90 %", "mean"),
        reached_90=("rounds to 90 %", "count"),
        why_not=("why not", "first"),
    ).reset_index()


def tables(frames: Mapping[str, pd.DataFrame]) -> str:
    """Markdown of several results of `modes`, by the heading of their columns: after the rounds, and one shot.

    Mean and standard deviation over seeds, in per cent for shares; rounds to 90 % where every seed reached it.
    """
    parts = []
    shares = any((frame["unit"] == "%").any() for frame in frames.values())
    after = "after the rounds (rounds to 90 %)" if shares else "after the rounds"
    for start, heading in (("shared", after), ("independent", "one shot")):
        shown = {title: summary(frame[frame["start"] == start]) for title, frame in frames.items()}
        for found in shown.values():
            found["mode"] += [f", noise {sigma:g}" if sigma else "" for sigma in found["noise"]]
        names = list(dict.fromkeys(name for found in shown.values() for name in found["mode"]))
        lines = [f"| {heading} | " + " | ".join(shown) + " |", "|---|" + "---|" * len(shown)]
        for name in names:
            cells = [_cell(found[found["mode"] == name]) for found in shown.values()]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _cell(rows: pd.DataFrame) -> str:
    if rows.empty or rows["value"].isna().all():
        return "–"
    row = rows.iloc[0]
    scale, digits = (100, 1) if row["unit"] == "%" else (1, 3)
    spread = "" if row["seeds"] < 2 else f" ± {scale * row['value_std']:.{digits}f}"
    reached = row["reached_90"] == row["seeds"] and row["start"] == "shared"
    return f"{scale * row['value']:.{digits}f}{spread}" + (f" ({row['rounds_to_90']:.0f})" if reached else "")


def _rounds(
    federation: Federation, config: FederateConfig, noise: Sequence[float], names: Sequence[str] | Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    plans = [(name, 0.0) for name in ROUNDS if name in names]
    plans += [(name, sigma) for sigma in noise for name in NOISY if name in names]
    for name, sigma in plans:
        yield {"start": "shared", "mode": name, "noise": sigma, **_row(federation, config, ROUNDS[name], sigma)}


def _one_shot(
    federation: Federation, config: FederateConfig, epochs: int, names: Sequence[str] | set[str]
) -> Iterator[dict[str, Any]]:
    """Fused once, all from the same trained clients; and these clients as an ensemble."""
    config = replace(config, start="independent", rounds=1, epochs=epochs)
    if (steps := federation.recipe.steps) is not None:
        federation = replace(federation, recipe=replace(federation.recipe, steps=epochs * steps))
    plans = {name: given for name, given in ONE_SHOT.items() if name in names}
    settings = [replace(config, **given).settings(federation.recipe, config.seed) for given in (*plans.values(), {})]
    wants = {kind for each in settings for kind in each.fuse.wants}
    engine = _Once(federation, settings[-1].local, sorted(wants))
    facts = {"start": "independent", "noise": 0.0}
    for name, given in plans.items():
        yield {"mode": name, **facts, **_row(federation, config, given, engine=engine)}
    combined = {name: head for name, head in ENSEMBLES.items() if name in names}
    average = _row(federation, config, ONE_SHOT[AVERAGE], engine=engine) if combined else {}
    shown: dict[str, Any] = {key: average[key] for key in ("kinds", "kB up", "why not") if key in average}
    for name, head in combined.items():
        if head is not None and head not in federation.task.heads:
            yield {"mode": name, **facts, "why not": f"task '{federation.task.name}' has no head '{head}'"}
            continue
        value = {} if "why not" in average else {"value": _ensemble(federation, list(engine.kept.values()), head)}
        yield {"mode": name, **facts, **shown, **value}


class _Once(InProcess):
    """Clients that train once, whoever asks, and make what anybody `wants`; what an order does not stays at home."""

    def __init__(self, federation: Federation, local: Local, wants: Sequence[str]) -> None:
        super().__init__(federation, local)
        self.wants, self.kept = tuple(wants), dict[str, Report]()

    def answer(self, order: Order) -> Report | Failure:
        if not order.train:
            return super().answer(order)
        if order.client not in self.kept:
            found = super().answer(replace(order, wants=self.wants))
            if isinstance(found, Failure):
                return found
            self.kept[order.client] = found
        report = self.kept[order.client]
        wanted = {name: "input-moments" if name == INPUTS else "moments" for name in report.moments}
        return replace(report, moments={name: report.moments[name] for name in wanted if wanted[name] in order.wants})


def _ensemble(federation: Federation, reports: Sequence[Report], head: str | None) -> float:
    """Headline metric of all clients' networks together, weighed by samples, as the task combines or by a head."""
    from featalign.clients import Ensemble, evaluate
    from featalign.clients.evaluation import temper_of

    members = []
    for report in reports:
        members.append(federation.make(0))
        members[-1].load_state_dict(report.weights)
    total = sum(report.statistics["samples"] for report in reports)
    weights = [report.statistics["samples"] / total for report in reports]
    probe = federation.probe
    temper = 1.0 if probe is None else temper_of(members, probe, federation.task, weights)
    together = Ensemble(members, weights, federation.task, head=head, temper=temper)
    scores = evaluate(together, federation.evaluation, federation.task)
    return scores[federation.task.metric.name]


def _row(
    federation: Federation,
    config: FederateConfig,
    given: Mapping[str, Any],
    noise: float = 0.0,
    engine: InProcess | None = None,
) -> dict[str, Any]:
    try:
        run = replace(config, noise=noise, **given)
        server = Server(federation, run.settings(federation.recipe, config.seed))
        engine = engine or InProcess(federation, server.settings.local)
        result = drive(server, engine, config.rounds, progress=False)
    except BadOption as error:
        return {"why not": str(error)}
    up = result.frames["traffic"].query("direction == 'up'")
    values = result.to_frame()["value"]
    return {
        "kinds": ", ".join(kind for kind in up["kind"].unique() if kind != "statistics"),
        "kB up": up["bytes"].sum() / 1e3 / len(federation) / config.rounds,
        "value": float(values.iloc[-1]),
        "late": float(values.iloc[-5:].mean()),
        "rounds to 90 %": result.rounds_to(0.9) if federation.task.metric.unit == "%" else None,
    }
