"""What rounds give back: tidy frames, declared row by row, and the network."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from torch import nn


@dataclass(frozen=True)
class RoundRow:
    """One round.

    Attributes:
        round: from 1.
        value: headline metric of the server's network on the evaluation inputs; NaN without any.
        mean, worst: of the headline metric on each client's own samples: over all clients, over the worst tenth.
        loss: mean training loss of the reports, by mixing weight.
        drift: mean of the updates' norms over the norm of the server's weights.
        scale: of the step towards the fused network.
        asked, reported, dropped, clipped: clients; those that were there, used, not used, scaled down.
        survival: share of the features that clients had the first time they were read that the server's network holds,
            mean over clients and spaces; NaN in rounds whose features were not read.
        bytes_up, bytes_down: of all clients.
        training_seconds: sum over reports.
        seconds: wall-clock.
    """

    round: int
    value: float
    mean: float
    worst: float
    loss: float
    drift: float
    survival: float
    scale: float
    asked: int
    reported: int
    dropped: int
    clipped: int
    bytes_up: int
    bytes_down: int
    training_seconds: float
    seconds: float


@dataclass(frozen=True)
class ClientRow:
    """One client in one round.

    Attributes:
        round, client: which.
        status: used, clipped, dropped, or absent.
        weight: in the aggregate; 0 when it was not used.
        value: headline metric of the server's network, after the round, on the client's own samples.
        loss, drift, seconds: of its training; NaN where it gave no report.
        bytes_up, bytes_down: of its messages.
    """

    round: int
    client: str
    status: str
    weight: float
    value: float
    loss: float
    drift: float
    seconds: float
    bytes_up: int
    bytes_down: int


@dataclass(frozen=True)
class TrafficRow:
    """Bytes of one kind (`messages.KINDS`) between the server and one client in one round.

    Attributes:
        round, client: which.
        direction: up (to the server) or down.
        kind: weights, control, moments, dictionaries or statistics.
        bytes: sent.
    """

    round: int
    client: str
    direction: str
    kind: str
    bytes: int


@dataclass(frozen=True)
class FaultRow:
    """A report that was not taken as it came.

    Attributes:
        round, client: which.
        fault: a name of `faults.FAULTS`.
        action: dropped or clipped.
        detail: what was found.
    """

    round: int
    client: str
    fault: str
    action: str
    detail: str


@dataclass(frozen=True)
class FeatureRow:
    """Features of one network in one hidden space, in a round in which they were read.

    Attributes:
        round, client: which; "server" is the aggregate.
        space: hidden space.
        alive: latents that fire on the probe.
        shared, local, lost: of them, those that the aggregate holds together with those of another client, those that
            it holds of this client alone, those that it does not hold. Of the aggregate's own: those of two clients or
            more, of one, of none.
        relearned: features that the aggregate had lost the last time and that this network has again.
        new: features without a counterpart in the last reading of this network.
        survival: share of the features of the first reading of this network that the aggregate holds.
    """

    round: int
    client: str
    space: str
    alive: int
    shared: int
    local: int
    lost: int
    relearned: int
    new: int
    survival: float


@dataclass(frozen=True)
class FlowRow:
    """Where features of the clients went between two readings, in one hidden space, over all clients.

    Attributes:
        round: of the later reading.
        space: hidden space.
        before: shared, local or lost in the earlier reading, or new.
        after: shared, local or lost in the later one, or gone.
        count: of features.
    """

    round: int
    space: str
    before: str
    after: str
    count: int


ROWS: Mapping[str, type] = {
    "rounds": RoundRow,
    "clients": ClientRow,
    "traffic": TrafficRow,
    "faults": FaultRow,
    "features": FeatureRow,
    "flows": FlowRow,
}
SECONDS = ("seconds", "training_seconds")  # columns that differ between runs of one seed


@dataclass
class FederatedResult:
    """The server's network after the last round, and what every round did.

    Attributes:
        module: in eval mode.
        metric: name of the headline metric, of the columns `value`, `mean` and `worst`.
        rows: by the names in `ROWS`.
        facts: settings, feasibility of the law of presence, notes.
    """

    module: nn.Module
    metric: str
    rows: dict[str, list[Any]] = field(default_factory=lambda: {name: [] for name in ROWS})
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def frames(self) -> dict[str, pd.DataFrame]:
        """All rows as frames, by name."""
        return {name: frame_of(self.rows[name], kind) for name, kind in ROWS.items()}

    def to_frame(self) -> pd.DataFrame:
        """One row per round."""
        return frame_of(self.rows["rounds"], RoundRow)

    def figures_only(self) -> dict[str, pd.DataFrame]:
        """The frames without wall-clock: equal for equal seeds."""
        return {name: frame.drop(columns=[c for c in SECONDS if c in frame]) for name, frame in self.frames.items()}

    def rounds_to(self, value: float, higher_is_better: bool = True) -> int | None:
        """The first round whose headline metric reaches `value`, or None."""
        sign = 1 if higher_is_better else -1
        reached = [row.round for row in self.rows["rounds"] if sign * row.value >= sign * value]
        return reached[0] if reached else None

    def __repr__(self) -> str:
        return self.to_frame().to_string(max_rows=40)

    def _repr_html_(self) -> str:
        return self.to_frame().to_html(max_rows=40)


def frame_of(rows: list[Any], kind: type) -> pd.DataFrame:
    """Rows of one dataclass as a frame."""
    columns = [item.name for item in dataclasses.fields(kind)]
    return pd.DataFrame([[getattr(row, name) for name in columns] for row in rows], columns=columns)
