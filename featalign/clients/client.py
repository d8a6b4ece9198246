"""Clients: trained networks with the data they saw, cached by everything that determines their weights."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from featalign import storage
from featalign.clients.models import ModelConfig, build, models
from featalign.clients.training import VERSION, TrainConfig, check_finite, train
from featalign.data.datasets import Dataset
from featalign.data.partition import Partition
from featalign.data.task import TASKS, Task
from featalign.data.tasks.classification import Classification
from featalign.errors import BadOption
from featalign.tracking import Log, prefixed

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Client:
    """A separately trained network.

    Attributes:
        name: 'A', 'B', ...
        model: in eval mode.
        indices: the training samples it saw, `[n]` int64.
        counts: its label counts, `[classes]`.
        seed: of the run it belongs to; initialisation and order of samples derive from it and the client's number.
        losses: mean training loss per epoch.
        key: fingerprint under which it is cached.
        task: what it was trained for.
        note: empty, or why it was left untrained; such a client is to be left out of comparisons.
    """

    name: str
    model: nn.Module
    indices: np.ndarray
    counts: np.ndarray
    seed: int
    losses: tuple[float, ...] = field(default=(), repr=False)
    key: str = ""
    task: Task = field(default_factory=Classification, repr=False)
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Name, label counts, seed, losses and fingerprint, without weights."""
        return {
            "name": self.name,
            "samples": len(self.indices),
            "counts": self.counts.tolist(),
            "seed": self.seed,
            "losses": list(self.losses),
            "key": self.key,
            **({"note": self.note} if self.note else {}),
        }


def client_folder(key: str) -> Path:
    """Where the cache keeps a trained client."""
    return storage.cache_folder() / "clients" / key


def train_clients(
    dataset: Dataset,
    partition: Partition,
    model_config: ModelConfig | str | Sequence[ModelConfig] | None = None,
    train_config: TrainConfig | None = None,
    seed: int = 0,
    progress: bool = True,
    cache: bool = True,
    shared_init: bool = False,
    task: Task | str | None = None,
    device: torch.device | str | None = None,
    log: Log | None = None,
) -> list[Client]:
    """Train one client per part of a partition, or load it when it was trained before.

    Args:
        dataset, partition: the data and who sees what; inputs are taken from the training split.
        model_config: a configuration, one for each client, or the name of a family; defaults to the MLP that suits the
            data set.
        train_config: defaults to the (first) family's recipe for so many samples.
        seed: client k starts from initialisation seed `1000 * seed + k`, and sees its samples in an order of its own.
        progress: show a bar over epochs for each client that is trained.
        cache: read and write the cache; an interrupted run goes on from the clients that were finished. A damaged
            entry is trained again, a cache that cannot be written is done without, each with a `CacheWarning`.
        shared_init: all clients start from the same weights (as rounds of federated averaging do).
        task: defaults to the data set's.
        device: where clients are trained and stay.
        log: receives the losses of clients that are trained, `log(metrics, step)`, with the client's name before each.

    A client without samples comes back untrained, with a note. Raises `BadOption` for a partition of another data set
    or another number of configurations than clients, and `NotFinite` for a client that diverged.
    """
    if isinstance(task, str):
        task = TASKS[task]()
    dataset = dataset if task is None else replace(dataset, task=task)
    if model_config is None or isinstance(model_config, str):
        model_config = models[model_config or "mlp"].for_dataset(dataset)
    names = partition.client_names
    configs = [model_config] * len(names) if isinstance(model_config, ModelConfig) else list(model_config)
    if len(configs) != len(names):
        raise BadOption(f"{len(configs)} configurations for {len(names)} clients; give one for each")
    train_config = train_config or configs[0].recipe(len(dataset.train_labels))
    if max((int(part.max()) for part in partition.indices if len(part)), default=0) >= len(dataset.train_labels):
        raise BadOption(f"the partition deals samples that '{dataset.name}' does not have; partition its train_labels")
    clients = []
    for k, (name, config) in enumerate(zip(names, configs)):
        init_seed, chosen = 1000 * seed + (0 if shared_init else k), partition.indices[k]
        identity = {
            "dataset": dataset.digest,
            "indices": partition.digests[k],
            "model": config.to_dict(),
            "train": train_config.to_dict(),
            "seeds": [init_seed, 1000 * seed + k],
            "version": VERSION,
            **_setting(dataset.task, device),
        }
        key = storage.fingerprint(identity)
        model, losses = build(config, init_seed), []
        if len(chosen):
            inputs, targets = dataset.train_inputs[chosen], dataset.train_labels[chosen]
            title, order = f"client {name}, seed {seed}", 1000 * seed + k
            make = partial(
                train, model, inputs, targets, dataset.task, train_config, order, progress, title, device,
                prefixed(log, name),
            )  # fmt: skip
            losses = _kept(model, name, make, identity, client_folder(key)) if cache else make()
        note = "" if len(chosen) else "no samples: left untrained"
        if note:
            logger.warning("client %s has %s", name, note)
        model.to(device).eval()
        found = Client(name, model, chosen, partition.counts[k], seed, tuple(losses), key, dataset.task, note)
        clients.append(found)
    return clients


def _setting(task: Task, device: torch.device | str | None) -> dict[str, Any]:
    """What else decides the weights, where it is not plain classification on the processor."""
    plain, where = Classification().to_dict(), torch.device(device or "cpu").type
    found = {} if task.to_dict() == plain else {"task": task.to_dict()}
    return found if where == "cpu" else {**found, "device": where}


def _kept(
    model: nn.Module, name: str, make: Callable[[], list[float]], identity: dict[str, Any], folder: Path
) -> list[float]:
    """Losses of the training, whose weights the model holds then, from the cache or made now."""

    def save(losses: list[float], folder: Path) -> None:
        storage.save_tensors(folder / "weights.safetensors", model.state_dict())
        storage.write_json(folder / "client.json", {**identity, "losses": losses})

    def load(folder: Path) -> list[float]:
        fresh = {key: tensor.clone() for key, tensor in model.state_dict().items()}
        try:
            losses = list(storage.read_json(folder / "client.json")["losses"])
            model.load_state_dict(storage.load_tensors(folder / "weights.safetensors"))
            check_finite(model, name)
        except Exception:
            model.load_state_dict(fresh)  # training starts from the initialisation, not from a damaged entry
            raise
        logger.info("client %s: loaded from %s", name, folder)
        return losses

    return storage.cached(folder, make, load, save)
