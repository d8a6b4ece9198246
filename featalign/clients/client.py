"""Clients: trained networks with the data they saw, cached by everything that determines their weights."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
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
from featalign.errors import BadOption, CorruptFile, NotFinite

log = logging.getLogger(__name__)


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
    model_config: ModelConfig | str | None = None,
    train_config: TrainConfig | None = None,
    seed: int = 0,
    progress: bool = True,
    cache: bool = True,
    shared_init: bool = False,
    task: Task | str | None = None,
    device: torch.device | str | None = None,
) -> list[Client]:
    """Train one client per part of a partition, or load it when it was trained before.

    Args:
        dataset, partition: the data and who sees what; inputs are taken from the training split.
        model_config: a configuration or the name of a family; defaults to the MLP that suits the data set.
        train_config: defaults to the family's recipe for so many samples.
        seed: client k starts from initialisation seed `1000 * seed + k`, and sees its samples in an order of its own.
        progress: show a bar over epochs for each client that is trained.
        cache: read and write the cache; an interrupted run goes on from the clients that were finished. A damaged
            entry is trained again with a warning, a cache that cannot be written is done without.
        shared_init: all clients start from the same weights (as rounds of federated averaging do).
        task: defaults to the data set's.
        device: where clients are trained and stay.

    A client without samples comes back untrained, with a note. Raises `BadOption` for a partition of another data set
    and `NotFinite` for a client that diverged.
    """
    if isinstance(task, str):
        task = TASKS[task]()
    dataset = dataset if task is None else replace(dataset, task=task)
    if not isinstance(model_config, ModelConfig):
        model_config = models[model_config or "mlp"].for_dataset(dataset)
    train_config = train_config or model_config.recipe(len(dataset.train_labels))
    if max((int(part.max()) for part in partition.indices if len(part)), default=0) >= len(dataset.train_labels):
        raise BadOption(f"the partition deals samples that '{dataset.name}' does not have; partition its train_labels")
    clients = []
    for k, name in enumerate(partition.client_names):
        init_seed, chosen = 1000 * seed + (0 if shared_init else k), partition.indices[k]
        identity = {
            "dataset": dataset.digest,
            "indices": partition.digests[k],
            "model": model_config.to_dict(),
            "train": train_config.to_dict(),
            "seeds": [init_seed, 1000 * seed + k],
            "version": VERSION,
            **_setting(dataset.task, device),
        }
        key = storage.fingerprint(identity)
        model = build(model_config, init_seed)
        losses = _restore(model, key, name) if cache else None
        if losses is None and len(chosen):
            losses = train(
                *(model, dataset.train_inputs[chosen], dataset.train_labels[chosen], dataset.task, train_config),
                *(1000 * seed + k, progress, f"client {name}, seed {seed}", device),
            )
            if cache:
                _save(model, key, identity, losses)
        note = "" if len(chosen) else "no samples: left untrained"
        if note:
            log.warning("client %s has %s", name, note)
        model.to(device).eval()
        found = Client(name, model, chosen, partition.counts[k], seed, tuple(losses or ()), key, dataset.task, note)
        clients.append(found)
    return clients


def _setting(task: Task, device: torch.device | str | None) -> dict[str, Any]:
    """What else decides the weights, where it is not plain classification on the processor."""
    plain, where = Classification().to_dict(), torch.device(device or "cpu").type
    found = {} if task.to_dict() == plain else {"task": task.to_dict()}
    return found if where == "cpu" else {**found, "device": where}


def _save(model: nn.Module, key: str, identity: dict[str, Any], losses: list[float]) -> None:
    try:
        with storage.atomic_folder(client_folder(key), overwrite=True) as folder:
            storage.save_tensors(folder / "weights.safetensors", model.state_dict())
            storage.write_json(folder / "client.json", {**identity, "losses": losses})
    except OSError as error:
        log.warning("cache '%s' cannot be written (%s); going on without", client_folder(key).parent, error.strerror)


def _restore(model: nn.Module, key: str, name: str) -> list[float] | None:
    """Load cached weights into a model and return the losses of its training; None where there are none that hold."""
    folder = client_folder(key)
    if not folder.is_dir():
        return None
    try:
        weights = storage.load_tensors(folder / "weights.safetensors")
        losses = storage.read_json(folder / "client.json")["losses"]
        model.load_state_dict(weights)
        check_finite(model, name)
    except (CorruptFile, NotFinite, OSError, RuntimeError, KeyError) as error:
        log.warning("cached client '%s' is damaged (%s); training it again", name, str(error).splitlines()[0])
        return None
    log.info("client %s: loaded from %s", name, folder)
    return losses
