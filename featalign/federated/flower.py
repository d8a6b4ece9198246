"""Flower (Message API): a strategy for any Flower app, our client and server apps, and a grid in this process.

In an app of one's own only the strategy changes, `FedAvg()` to

>>> strategy = FeatureAlign(model, probe, fuse=("ot-acts", {"refit": True}))

`server_app` and `client_app` run `featalign.federated` over Flower: the same seed gives the same figures as `run`.
Telemetry and update checks of Flower are switched off where nobody asked for them.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from featalign import storage
from featalign.dictionaries.dictionary import Dictionary
from featalign.errors import BadOption
from featalign.federated.faults import clipped, examine
from featalign.federated.federation import Federation
from featalign.federated.fusing import Fusing, fuse_reports
from featalign.federated.local import Local, update
from featalign.federated.messages import Failure, Order, Report, State
from featalign.federated.result import FederatedResult
from featalign.federated.rounds import drive
from featalign.federated.server import Named, Server, Settings

for _name in ("FLWR_TELEMETRY_ENABLED", "RAY_USAGE_STATS_ENABLED"):
    os.environ.setdefault(_name, "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")

try:
    from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MessageType, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid, ServerApp
    from flwr.serverapp.strategy import FedAvg
except ImportError as error:  # pragma: no cover - depends on what is installed
    raise ImportError("featalign.federated.flower wants Flower: pip install 'featalign[federated]'") from error

ARRAYS, CONFIG, METRICS, EXAMPLES = "arrays", "config", "metrics", "num-examples"


class FeatureAlign(FedAvg):  # type: ignore[misc]
    """FedAvg whose average is any fusion method: clients are aligned, averaged and refitted on a public probe.

    Args:
        model: the network that clients train, as a module; its `state_dict` is what travels.
        probe: unlabelled inputs on the server.
        task: what the network is for.
        fuse: a registered fusion method, or `(name, options)`; see `federated.run`.
        clip: updates beyond so many times what is typical of the round are scaled down.
        folder: where the network is saved after every round, as safetensors.
        options: of Flower's `FedAvg`.

    Reports that are malformed, not finite or far too large are left out or scaled down with a `ClientWarning`. With
    `refit="moments"` clients have to be those of `client_app`.
    """

    def __init__(
        self,
        model: nn.Module,
        probe: Any,
        *,
        task: Any = "classification",
        fuse: Named | Fusing = "vanilla",
        clip: float = 10.0,
        folder: Path | str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.federation = Federation.remote({"server": 1}, model, probe, task=task)
        self.fusing, self.clip, self.folder = Fusing.of(fuse), clip, folder
        if self.fusing.calibrate:
            raise BadOption("calibrate asks clients a second time in a round; run server_app with client_app for it")
        self._server: State = {}
        self._asked: list[int] = []
        self._typical = (0.0, 0.0)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """As FedAvg, with what the fusion method wants of clients in the configuration."""
        self._server = dict(arrays.to_torch_state_dict())
        if self.fusing.wants:
            config["wants"] = list(self.fusing.wants)
        messages = list(super().configure_train(server_round, arrays, config, grid))
        self._asked = [message.metadata.dst_node_id for message in messages]
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Fuse the replies that can be used; without any the network stays."""
        valid, _ = self._check_and_log_replies(list(replies), is_train=True, validate=False)
        valid.sort(key=_place)
        by_name = {str(message.metadata.src_node_id): message.content for message in valid}
        orders = [Order(server_round, name, {}, wants=self.fusing.wants) for name in by_name]
        orders += [Order(server_round, str(node), {}) for node in self._asked if str(node) not in by_name]
        answers = [_report(content, server_round, name, self.arrayrecord_key) for name, content in by_name.items()]
        reports, _ = examine(answers, orders, self._server, None)
        reports, _, _, self._typical = clipped(reports, self._server, self.clip, self._typical, True)
        if not reports:
            return None, None
        counts = np.array([_examples(by_name[report.client], self.weighted_by_key) for report in reports])
        fused = fuse_reports(self.federation, self.fusing, reports, counts / counts.sum(), self._server, shared=True)
        if self.folder is not None:
            storage.save_tensors(Path(self.folder) / f"round-{server_round:05d}.safetensors", fused)
        contents = [RecordDict({METRICS: _metrics(by_name[report.client])}) for report in reports]
        return ArrayRecord(fused), self.train_metrics_aggr_fn(contents, self.weighted_by_key)


class GridEngine:
    """An engine of `drive` whose clients are the nodes of a Flower grid, found by one round of questions.

    Args:
        min_available_nodes: waits until so many nodes are connected; raises `TimeoutError` when they do not come.
        timeout: in seconds, of that and of every exchange.

    Attributes:
        nodes, sizes: node and samples of each client that runs `client_app`, by name.
        failed: what the nodes say that could not answer.
    """

    def __init__(self, grid: Grid, min_available_nodes: int = 2, timeout: float = 3600.0) -> None:
        self.grid, self.timeout = grid, timeout
        found, self.failed = {}, []
        asking = [Message(RecordDict(), node, MessageType.QUERY) for node in self._connected(min_available_nodes)]
        for reply in grid.send_and_receive(asking, timeout=timeout):
            if reply.has_error():
                self.failed.append(str(reply.error.reason)[:200])
            else:
                told = reply.content[CONFIG]
                found[str(told["client"])] = (reply.metadata.src_node_id, int(told[EXAMPLES]))
        self.nodes = {name: node for name, (node, _) in sorted(found.items())}
        self.sizes = {name: samples for name, (_, samples) in sorted(found.items())}

    def _connected(self, least: int) -> list[int]:
        """Nodes of the grid, once there are enough: simulated and real ones connect after the server has started."""
        end = time.monotonic() + self.timeout
        while len(nodes := list(self.grid.get_node_ids())) < least:
            if time.monotonic() > end:
                raise TimeoutError(f"{len(nodes)} of min_available_nodes = {least} connected in {self.timeout:g} s")
            time.sleep(0.5)
        return nodes

    def require(self, names: Sequence[str]) -> None:
        """Raise `BadOption` when a client that the server counts on is no node."""
        missing = [name for name in names if name not in self.nodes]
        if missing:
            nodes = ", ".join(self.nodes) or "none that answers"
            failed = f"; {len(self.failed)} failed: {self.failed[0]}" if self.failed else ""
            raise BadOption(f"client '{missing[0]}' is no node of the grid; nodes: {nodes}{failed}")

    def __call__(self, orders: Sequence[Order]) -> list[Report | Failure]:
        """Answers in the orders' order; who gave none in time is left out."""
        messages = [Message(_packed(order), self.nodes[order.client], MessageType.TRAIN) for order in orders]
        names = {self.nodes[order.client]: order for order in orders}
        found: dict[str, Report | Failure] = {}
        for reply in self.grid.send_and_receive(messages, timeout=self.timeout):
            order = names[reply.metadata.src_node_id]
            if reply.has_error():
                found[order.client] = Failure(order.round, order.client, str(reply.error.reason)[:200])
            else:
                found[order.client] = _report(reply.content, order.round, order.client)
        return [found[order.client] for order in orders if order.client in found]


def client_app(federation: Callable[[Context], Federation], local: Local | None = None) -> ClientApp:
    """A client: trains on its own data, and sends what the server wants.

    Args:
        federation: what this node knows, from Flower's context: its own data alone (one client of a name of its own),
            or in simulation all clients, of which `partition-id` is this one.
        local: how it trains.
    """
    app, chosen = ClientApp(), local or Local()

    @app.query()
    def who(message: Message, context: Context) -> Message:
        known = federation(context)
        k = _own_place(known, context)
        told = ConfigRecord({"client": known.names[k], EXAMPLES: known.sizes[k]})
        return Message(RecordDict({CONFIG: told}), reply_to=message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        known = federation(context)
        name = known.names[_own_place(known, context)]
        order = _order(message.content, name)
        kept = context.state.get("control")
        control = dict(kept.to_torch_state_dict()) if isinstance(kept, ArrayRecord) else None
        report = update(known, order, chosen, control)
        if report.control:
            before = control or {key: torch.zeros_like(change) for key, change in report.control.items()}
            context.state["control"] = ArrayRecord({k: before[k] + change for k, change in report.control.items()})
        return Message(_packed_report(report), reply_to=message)

    return app


def server_app(
    federation: Callable[[Context, Mapping[str, int]], Federation],
    settings: Settings,
    rounds: int,
    done: Callable[[FederatedResult], None],
    folder: Path | str | None = None,
    min_available_nodes: int = 2,
) -> ServerApp:
    """A server that runs rounds over the nodes of a grid.

    Args:
        federation: what the server knows, from the context and `{client: samples}`; see `Federation.remote`.
        done: called with the result.
        folder: where every round is saved.
        min_available_nodes: waits until so many nodes are connected.
    """
    from featalign.federated.checkpoint import open_folder, restore

    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        engine = GridEngine(grid, min_available_nodes)
        server = Server(federation(context, engine.sizes), settings)
        engine.require(server.federation.names)
        place = None if folder is None else open_folder(folder, server, resume=True)
        if place is not None:
            restore(place, server)
        done(drive(server, engine, rounds, place, progress=False))

    return app


class LocalGrid(Grid):  # type: ignore[misc]
    """Nodes in this process, one after the other: for tests and for trying an app out.

    Node ids are drawn, and replies come in another order than questions, as on other grids.
    """

    def __init__(self, app: ClientApp, nodes: int, seed: int = 0) -> None:
        _identify()
        rng = random.Random(seed)
        self.app, self._rng = app, rng
        self._contexts = {
            rng.getrandbits(60): Context(1, 0, {"partition-id": k, "num-partitions": nodes}, RecordDict(), {})
            for k in range(nodes)
        }
        self._held: dict[str, Message] = {}

    def set_run(self, run: Any) -> None:
        """Nothing to set."""

    @property
    def run(self) -> Any:
        """None."""
        return None

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """A message to a node."""
        return Message(content, dst_node_id, message_type, group_id=group_id, ttl=ttl)

    def get_node_ids(self) -> Iterable[int]:
        """Of all nodes."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Run them, and keep the replies."""
        keys = []
        for message in messages:
            keys.append(f"{len(self._held)}-{self._rng.getrandbits(32)}")
            self._held[keys[-1]] = self._answer(message)
        return keys

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies."""
        return [self._held.pop(key) for key in message_ids if key in self._held]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Replies, shuffled."""
        replies = list(self.pull_messages(self.push_messages(messages)))
        self._rng.shuffle(replies)
        return replies

    def _answer(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        try:
            return self.app(message, self._contexts[node])
        except Exception as error:
            return Message(Error(1, f"{type(error).__name__}: {error}"), reply_to=message)


def _identify() -> None:
    """Flower's messages want to know in which run they are made; its own engines say so, here nobody did."""
    from flwr.supercore.task_identity import TaskIdentity

    for name in ("_task_id", "_run_id", "_node_id"):
        if getattr(TaskIdentity, name, None) is None:
            setattr(TaskIdentity, name, 1)


def _own_place(federation: Federation, context: Context) -> int:
    return 0 if len(federation) == 1 else int(context.node_config["partition-id"])


def _packed(order: Order) -> RecordDict:
    config = ConfigRecord(
        {
            "server-round": order.round,
            "init-seed": order.init_seed,
            "order-seed": order.order_seed,
            "wants": list(order.wants),
            "train": order.train,
            "peers": list(order.peers),
            "share": order.share,
        }
    )
    parts = {ARRAYS: order.weights, "control": order.control}
    return RecordDict({**{key: ArrayRecord(part) for key, part in parts.items() if part}, CONFIG: config})


def _order(content: RecordDict, client: str) -> Order:
    config, parts = content[CONFIG], content.array_records
    weights, control = (dict(parts[key].to_torch_state_dict()) if key in parts else {} for key in (ARRAYS, "control"))
    wants = tuple(config.get("wants", ()))
    init, order = (int(config.get(key, 0)) for key in ("init-seed", "order-seed"))
    training = bool(config.get("train", True))
    peers, share = tuple(config.get("peers", ())), float(config.get("share", 1.0))
    return Order(int(config["server-round"]), client, weights, control, init, order, wants, training, peers, share)


def _packed_report(report: Report) -> RecordDict:
    shapes, atoms = [], {}
    for place, (space, found) in enumerate(report.dictionaries.items()):
        facts = {"space": space, "architecture": found.architecture, "k": found.k, "metadata": dict(found.metadata)}
        shapes.append({**facts, "normalize_activations": found.normalize_activations})
        atoms.update({f"{place}/{name}": tensor for name, tensor in found.tensors.items()})
    parts = {ARRAYS: report.weights, "control": report.control, "moments": report.moments, "dictionaries": atoms}
    records: dict[str, Any] = {key: ArrayRecord(part) for key, part in parts.items() if part}
    numbers = {EXAMPLES: int(report.statistics["samples"]), **report.statistics}
    told = ConfigRecord({"round": report.round, "dictionaries": json.dumps(storage.plain(shapes))})
    return RecordDict({**records, METRICS: MetricRecord(numbers), CONFIG: told})


def _report(content: RecordDict, number: int, client: str, arrays: str = ARRAYS) -> Report:
    """The report in a reply of `client_app`, or of any Flower client: its arrays and metrics."""
    parts = {key: dict(record.to_torch_state_dict()) for key, record in content.array_records.items()}
    told = content.config_records.get(CONFIG, {})
    dictionaries = {}
    for place, facts in enumerate(json.loads(str(told.get("dictionaries", "[]")))):
        held = parts.get("dictionaries", {})
        tensors = {key.partition("/")[2]: t for key, t in held.items() if key.partition("/")[0] == str(place)}
        space = facts.pop("space")
        dictionaries[space] = Dictionary(tensors=tensors, **facts)
    numbers = {key: float(value) for key, value in _metrics(content).items() if isinstance(value, (int, float))}
    numbers.setdefault("samples", numbers.get(EXAMPLES, 0.0))
    numbers.pop(EXAMPLES, None)
    return Report(
        int(told.get("round", number)), client, parts.get(arrays, {}), parts.get("control", {}),
        parts.get("moments", {}), dictionaries, numbers,
    )  # fmt: skip


def _metrics(content: RecordDict) -> MetricRecord:
    return next(iter(content.metric_records.values()), MetricRecord())


def _examples(content: RecordDict, key: str) -> float:
    value = _metrics(content).get(key, 1)
    return float(value) if isinstance(value, (int, float)) else 1.0


def _place(message: Message) -> tuple[float, int]:
    """Order in which replies are summed: by `partition-id` where a client tells it, by node otherwise."""
    told = _metrics(message.content).get("partition-id", float("inf"))
    return float(told) if isinstance(told, (int, float)) else float("inf"), message.metadata.src_node_id
