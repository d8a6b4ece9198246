"""Rows of a round from what came in and what was made of it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from featalign.federated.messages import Order, Report
from featalign.federated.result import ClientRow, FaultRow, FeatureRow, RoundRow, TrafficRow
from featalign.federated.weigh import Weights

SERVER = "server"  # stands for the aggregate in rows of features


@dataclass(frozen=True)
class Exchange:
    """Orders that went out, usable reports that came in, faults of the others."""

    orders: Sequence[Order] = ()
    heard: Sequence[Report] = ()
    faults: Sequence[FaultRow] = ()


@dataclass(frozen=True)
class Closed:
    """A round as the server closed it.

    Attributes:
        round: which.
        orders: what was asked.
        heard, used: reports that were well-formed, and those of them in the aggregate.
        faults: of all others.
        weights, drift: one entry per report that was used.
        second: the exchange of a calibration.
    """

    round: int
    orders: Sequence[Order]
    heard: Sequence[Report]
    used: Sequence[Report]
    faults: Sequence[FaultRow]
    weights: Weights
    drift: Sequence[float]
    second: Exchange = field(default_factory=Exchange)


def traffic_rows(closed: Closed, asked: Sequence[str]) -> list[TrafficRow]:
    """What went down to everybody who was asked, and up from everybody who was heard; a calibration included."""
    sums: Counter[tuple[str, str, str]] = Counter()
    sent = closed.orders[0].bytes() if closed.orders else {}
    for name in asked:
        for kind, size in sent.items():
            sums[name, "down", kind] += size
    for order in closed.second.orders:
        for kind, size in order.bytes().items():
            sums[order.client, "down", kind] += size
    for report in (*closed.heard, *closed.second.heard):
        for kind, size in report.bytes().items():
            sums[report.client, "up", kind] += size
    return [TrafficRow(closed.round, *key, size) for key, size in sums.items()]


def client_rows(
    closed: Closed, names: Sequence[str], scores: Mapping[str, float], traffic: Sequence[TrafficRow]
) -> list[ClientRow]:
    """One row for each client, present or not."""
    sums: Counter[tuple[str, str]] = Counter()
    for sent in traffic:
        sums[sent.client, sent.direction] += sent.bytes
    place = {report.client: k for k, report in enumerate(closed.used)}
    actions = {fault.client: fault.action for fault in closed.faults if fault.client not in place}
    clipped = {fault.client for fault in closed.faults if fault.action == "clipped"}
    rows = []
    for name in names:
        score, up, down = scores.get(name, math.nan), sums[name, "up"], sums[name, "down"]
        if name not in place:
            status = actions.get(name, "absent")
            rows.append(ClientRow(closed.round, name, status, 0.0, score, math.nan, math.nan, math.nan, up, down))
            continue
        k = place[name]
        told = closed.used[k].statistics
        status, weight = (
            "clipped" if name in clipped else "used",
            float(closed.weights.scale * closed.weights.mixing[k]),
        )
        loss, seconds = told.get("loss", math.nan), told.get("seconds", math.nan)
        rows.append(ClientRow(closed.round, name, status, weight, score, loss, closed.drift[k], seconds, up, down))
    return rows


def round_row(
    closed: Closed,
    asked: Sequence[str],
    value: float,
    scores: Mapping[str, float],
    higher_is_better: bool,
    traffic: Sequence[TrafficRow],
    features: Sequence[FeatureRow],
    seconds: float,
) -> RoundRow:
    """The row of the round; the worst tenth of the clients is at least one of them."""
    values = np.sort(np.array(list(scores.values())))[:: 1 if higher_is_better else -1]
    tenth = values[: max(1, math.ceil(len(values) / 10))]
    survived = [row.survival for row in features if row.client != SERVER and not math.isnan(row.survival)]
    losses = [report.statistics.get("loss", math.nan) for report in closed.used]
    return RoundRow(
        round=closed.round,
        value=value,
        mean=float(values.mean()) if len(values) else math.nan,
        worst=float(tenth.mean()) if len(values) else math.nan,
        loss=float(np.dot(closed.weights.mixing, losses)) if losses else math.nan,
        drift=float(np.mean(closed.drift)) if losses else math.nan,
        scale=closed.weights.scale,
        asked=len(asked),
        reported=len(closed.used),
        dropped=len(asked) - len(closed.used),
        survival=float(np.mean(survived)) if survived else math.nan,
        clipped=sum(fault.action == "clipped" for fault in closed.faults),
        bytes_up=sum(sent.bytes for sent in traffic if sent.direction == "up"),
        bytes_down=sum(sent.bytes for sent in traffic if sent.direction == "down"),
        training_seconds=sum(report.statistics.get("seconds", 0.0) for report in closed.used),
        seconds=seconds,
    )
