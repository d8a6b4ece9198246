"""Rounds in process: one round is select x weigh x fuse."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from featalign.federated.checkpoint import open_folder, restore, save_round
from featalign.federated.federation import Federation
from featalign.federated.fusing import Fusing
from featalign.federated.local import Local, update
from featalign.federated.messages import Failure, Order, Report, State
from featalign.federated.result import FederatedResult
from featalign.federated.server import Engine, Named, Server, Settings
from featalign.tracking import Log


class InProcess:
    """Clients trained one after the other in this process: an engine, and the variates that clients keep."""

    def __init__(self, federation: Federation, local: Local) -> None:
        self.federation, self.local = federation, local
        self.controls: dict[str, State] = {}

    def __call__(self, orders: Sequence[Order]) -> Iterator[Report | Failure]:
        """One answer per order; whatever a client raises is its failure."""
        for order in orders:
            yield self.answer(order)

    def answer(self, order: Order) -> Report | Failure:
        """What one client sends back."""
        control = self.controls.get(order.client)
        try:
            report = update(self.federation, order, self.local, control)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            return Failure(order.round, order.client, reason, error)
        if report.control:
            before = control or {name: torch.zeros_like(change) for name, change in report.control.items()}
            self.controls[order.client] = {name: before[name] + change for name, change in report.control.items()}
        return report


def run(
    federation: Federation,
    rounds: int = 10,
    *,
    select: Named = "all",
    weigh: Named = "samples",
    fuse: Named | Fusing = "vanilla",
    local: Local | None = None,
    folder: Path | str | None = None,
    resume: bool = False,
    progress: bool = True,
    engine: Engine | None = None,
    log: Log | None = None,
    **settings: Any,
) -> FederatedResult:
    """Run federated rounds in process. FedAvg is the default: samples x vanilla.

    Args:
        select, weigh: names in `SELECTIONS` and `WEIGHINGS`, or `(name, options)`.
        fuse: a fusion method, or `(name, options)`; refit (true, or "moments"), calibrate, repair, head and ridge go
            with them.
        local: algorithm and training of clients.
        folder: where every round is saved; with `resume` a run that was stopped goes on from its last complete round.
        engine: carries orders to clients and answers back; clients in this process by default.
        log: called after each round with its row, `log(metrics, round)` (see `fa.tracking`).
        settings: the other fields of `Settings`: start, server_lr, momentum, importance, clip, deadline, watch, seed.

    Equal seeds give equal figures. A client that fails is left out with a `ClientWarning`; where every client of a
    round fails, the first error is raised.
    """
    local = local or Local()
    chosen = Settings(_named(select), _named(weigh), Fusing.of(fuse), local, **settings)
    server = Server(federation, chosen)
    clients = InProcess(federation, local) if engine is None else engine
    place = None
    if folder is not None:
        place = open_folder(folder, server, resume)
        controls = restore(place, server)
        if isinstance(clients, InProcess):
            clients.controls = controls
    return drive(server, clients, rounds, place, progress, log)


def drive(
    server: Server,
    engine: Engine,
    rounds: int,
    folder: Path | None = None,
    progress: bool = True,
    log: Log | None = None,
) -> FederatedResult:
    """Bring a server to so many rounds."""
    from tqdm.auto import tqdm

    def ask(orders: Sequence[Order]) -> list[Report | Failure]:
        """Where every client fails the first error is raised."""
        answers = list(engine(orders))
        failures = [answer for answer in answers if isinstance(answer, Failure)]
        if failures and len(failures) == len(answers) and failures[0].error is not None:
            raise failures[0].error
        return answers

    bar = tqdm(total=rounds, initial=server.round, desc="rounds", disable=not progress, leave=False)
    while server.round < rounds:
        orders = server.orders()
        row = server.close(orders, ask(orders), ask)
        if folder is not None:
            save_round(folder, server, getattr(engine, "controls", {}))
        bar.update()
        if row.value == row.value:  # NaN without inputs to score on
            bar.set_postfix({server.result.metric: f"{row.value:.4f}"})
        if log is not None:
            log({key: value for key, value in vars(row).items() if key != "round"}, row.round)
    bar.close()
    return server.finish()


def _named(given: Named) -> tuple[str, Mapping[str, Any]]:
    return (given, {}) if isinstance(given, str) else (given[0], dict(given[1]))
