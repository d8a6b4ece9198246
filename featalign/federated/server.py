"""The server: orders of a round out, answers in, the next network. Engines and Flower only carry the messages."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch

from featalign.clients.evaluation import evaluate
from featalign.errors import BadOption
from featalign.federated.calibrate import calibrate, readout_of
from featalign.federated.faults import clipped, examine
from featalign.federated.features import FeatureWatch
from featalign.federated.federation import Federation
from featalign.federated.fusing import Fusing, fuse_reports
from featalign.federated.local import Local
from featalign.federated.messages import Failure, Order, Report, State
from featalign.federated.record import Closed, Exchange, client_rows, round_row, traffic_rows
from featalign.federated.result import FederatedResult, RoundRow
from featalign.federated.select import SELECTIONS, Draw
from featalign.federated.sums import summed
from featalign.federated.weigh import WEIGHINGS, Weights, importance_of
from featalign.options import bind_options, check

Named = str | tuple[str, Mapping[str, Any]]
Engine = Callable[[Sequence[Order]], Iterable[Report | Failure]]


@dataclass(frozen=True)
class Settings:
    """What a run does in every round.

    Attributes:
        select, weigh: registered names with their options.
        fuse: how reports become one network.
        local: how clients train.
        start: "shared" weights from the server, or "independent" initialisations in the first round (one-shot fusion).
        server_lr, momentum: of the server's step, `v = momentum v + (fused - x)`, `x += server_lr v`.
        importance: "samples", "uniform" or one number a client: the objective that weighings aim at.
        clip: updates beyond so many times what is typical of the round are scaled down to that.
        deadline: seconds of training after which a report is late; None waits.
        watch: samples of each client on which the server's network is scored; 0 leaves that out.
        features: rounds between two readings of features, from the first round on; 0 leaves them out.
        seed: of selections, initialisations and orders of samples.
    """

    select: tuple[str, Mapping[str, Any]] = ("all", {})
    weigh: tuple[str, Mapping[str, Any]] = ("samples", {})
    fuse: Fusing = field(default_factory=Fusing)
    local: Local = field(default_factory=Local)
    start: Literal["shared", "independent"] = "shared"
    server_lr: float = 1.0
    momentum: float = 0.0
    importance: str | tuple[float, ...] = "samples"
    clip: float = 10.0
    deadline: float | None = None
    watch: int = 500
    features: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        check(self)
        for name, low in (("server_lr", 0.0), ("clip", 1.0)):
            if not getattr(self, name) > low:
                raise BadOption(f"{name} = {getattr(self, name)}; give a number above {low:g}")
        if not 0 <= self.momentum < 1:
            raise BadOption(f"momentum = {self.momentum}; give a number in [0, 1)")
        if self.features < 0:
            raise BadOption(f"features = {self.features}; give the rounds between two readings, or 0 for none")


class Server:
    """Holds the network between rounds.

    Attributes:
        weights: state of the network.
        round: rounds that are complete.
        result: rows of those rounds.
    """

    def __init__(self, federation: Federation, settings: Settings) -> None:
        self.federation, self.settings = federation, settings
        if settings.start == "independent" and not federation.initialises:
            raise BadOption("start='independent' wants a configuration of a model: a module can only be copied")
        settings.local.config(federation)
        sizes = np.array(federation.sizes)
        name, options = settings.select
        chosen = SELECTIONS[name]
        self.presence = chosen(len(sizes), **bind_options(chosen, options, f"selection '{name}'"))
        name, options = settings.weigh
        kind = WEIGHINGS[name]
        bound = bind_options(kind.__init__, options, f"weighing '{name}'")
        self.weigher = kind(importance_of(settings.importance, sizes), sizes, self.presence, **bound)
        self.weights: State = federation.make(1000 * settings.seed).state_dict()
        self.parameters = [name for name, _ in federation.make(0).named_parameters()]
        self.velocity: State = {}
        self.control: State = {}
        if settings.local.controlled:
            self.control = {name: torch.zeros_like(self.weights[name]) for name in self.parameters}
        self.features = FeatureWatch(federation, settings.features, settings.seed)
        self.round = 0
        self.typical = (0.0, 0.0)
        facts = {"law": self.weigher.facts(), "notes": list(federation.notes)}
        self.result = FederatedResult(federation.make(0), federation.task.metric.name, facts=facts)
        self._began = 0.0

    @property
    def shared(self) -> bool:
        """Whether clients of the next round start from the server's weights."""
        return self.settings.start == "shared" or self.round > 0

    def draw(self) -> Draw:
        """Who takes part in the next round; the same on every call."""
        return self.presence.draw(self._generator(self.round + 1))

    def orders(self) -> list[Order]:
        """What the clients of the next round are asked."""
        self._began = time.perf_counter()
        seed, names = 1000 * self.settings.seed, self.federation.names
        weights = self.weights if self.shared else {}
        return [
            Order(
                self.round + 1, names[k], weights, self.control, seed + int(k), seed + int(k) + 1_000_003 * self.round,
                self.settings.fuse.wants,
            )
            for k in self.draw().present
        ]  # fmt: skip

    def close(
        self, orders: Sequence[Order], answers: Iterable[Report | Failure], ask: Engine | None = None
    ) -> RoundRow:
        """Take the answers of a round, in whatever order they come, and make the next network.

        `ask` carries a second exchange, where the fusing calibrates. Without a usable report the network stays.
        Raises what fusing raises: a method that the network does not allow is no client's fault.
        """
        settings, shared = self.settings, self.shared
        reports, faults = examine(answers, orders, self.weights, settings.deadline)
        base: State = self.weights if shared else {}
        heard = list(reports)
        reports, beyond, drift, typical = clipped(reports, base, settings.clip, self.typical, shared)
        self.typical = typical
        weights, present = Weights(np.zeros(0), 0.0), self._indices(reports)
        if reports:
            weights = self.weigher.weights(present)
            fused = fuse_reports(
                self.federation, settings.fuse, reports, weights.mixing, self.weights, shared, settings.seed
            )
            self._step(fused, weights.scale, shared)
            self._move_control(reports)
        second = Exchange()
        if reports and settings.fuse.calibrate:
            second = self._calibrate(reports, weights, ask)
        self.weigher.update(np.array([self.federation.names.index(order.client) for order in orders], dtype=np.int64))
        self.round += 1
        return self._record(
            Closed(self.round, orders, heard, reports, [*faults, *beyond, *second.faults], weights, drift, second)
        )

    def finish(self) -> FederatedResult:
        """The result with the network of the last round."""
        self.result.module.load_state_dict(self.weights)
        self.result.module.eval()
        return self.result

    def _indices(self, reports: Sequence[Report]) -> np.ndarray:
        return np.array([self.federation.names.index(report.client) for report in reports], dtype=np.int64)

    def _step(self, fused: State, scale: float, shared: bool) -> None:
        """`x + server_lr v` for parameters; buffers, and a plain step of one, take the fused ones as they are."""
        settings = self.settings
        found = dict(fused)
        if shared and (settings.momentum > 0 or settings.server_lr != 1 or scale != 1):
            for name in self.parameters:
                before = self.weights[name].double()
                change = scale * (fused[name].double() - before)
                if settings.momentum > 0:
                    change = change + settings.momentum * self.velocity.get(name, torch.zeros_like(before))
                    self.velocity[name] = change
                found[name] = (before + settings.server_lr * change).to(fused[name].dtype)
        self.weights = found

    def _calibrate(self, reports: Sequence[Report], weights: Weights, ask: Engine | None) -> Exchange:
        """Ask the clients of the round for moments of the network that was just made, and solve its readout."""
        if ask is None:
            raise BadOption("calibrate asks clients a second time in a round, which this engine does not; leave it out")
        names, number = tuple(report.client for report in reports), self.round + 1
        shares = {name: float(share) for name, share in zip(names, weights.mixing)}
        together = self.settings.fuse.calibrate == "masked"
        secret = 1000 * self.settings.seed + number
        orders = [
            Order(
                number, name, self.weights, order_seed=secret, wants=("moments",), train=False,
                peers=names if together else (), share=shares[name],
            )
            for name in names
        ]  # fmt: skip
        answers, faults = examine(ask(orders), orders, {}, self.settings.deadline)
        module = self.federation.make(0)
        module.load_state_dict(self.weights)
        name = readout_of(module, self.federation.example)
        total = sum(shares[answer.client] for answer in answers)
        if total > 0 and (not together or len(answers) == len(orders)):  # masks of who stays away do not cancel
            parts = [answer.moments[name] for answer in answers]
            gram = summed([{name: part} for part in parts])[name] if together else torch.zeros(())
            for answer, part in zip(() if together else answers, parts):
                gram = gram + shares[answer.client] / total * part.double()
            calibrate(module, self.federation.example, gram, self.settings.fuse.ridge)
            self.weights = {key: tensor.detach().clone() for key, tensor in module.state_dict().items()}
        return Exchange(orders, answers, faults)

    def _move_control(self, reports: Sequence[Report]) -> None:
        """`c += (1 / N) sum (c_k^+ - c_k)`, eq. 5 of Karimireddy et al. 2020."""
        for report in reports:
            for name, change in report.control.items():
                self.control[name] = self.control[name] + change / len(self.federation)

    def _record(self, closed: Closed) -> RoundRow:
        """Rows of the round, appended to the result."""
        own, rows = self._own_scores(), self.result.rows
        names = self.federation.names
        asked = [names[k] for k in self.presence.draw(self._generator(self.round)).asked]
        traffic = traffic_rows(closed, asked)
        rows["traffic"] += traffic
        rows["clients"] += client_rows(closed, names, own, traffic)
        rows["faults"] += closed.faults
        seen = self.features.due(closed.round) and closed.used
        features, flows = self.features.look(closed.round, closed.used, self.weights) if seen else ([], [])
        rows["features"] += features
        rows["flows"] += flows
        better = self.federation.task.metric.higher_is_better
        seconds = time.perf_counter() - self._began
        rows["rounds"].append(round_row(closed, asked, self._value(), own, better, traffic, features, seconds))
        return rows["rounds"][-1]

    def _generator(self, number: int) -> np.random.Generator:
        return np.random.default_rng([self.settings.seed, number])

    def _value(self) -> float:
        """Headline metric on the evaluation inputs."""
        if self.federation.evaluation is None:
            return math.nan
        self.result.module.load_state_dict(self.weights)
        found = evaluate(self.result.module, self.federation.evaluation, self.federation.task)
        return found[self.result.metric]

    def _own_scores(self) -> dict[str, float]:
        """Headline metric on samples of each client."""
        if not self.settings.watch:
            return {}
        self.result.module.load_state_dict(self.weights)
        found = {}
        for name, inputs in zip(self.federation.names, self.federation.own):
            sample = inputs.subset(slice(0, self.settings.watch))
            found[name] = evaluate(self.result.module, sample, self.federation.task)[self.result.metric]
        return found
