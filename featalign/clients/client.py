"""Clients: trained networks with the data they saw, cached by everything that determines their weights."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from featalign import storage
from featalign.clients.models import ModelConfig, build
from featalign.clients.training import VERSION, TrainConfig, check_finite, train
from featalign.data.datasets import Dataset
from featalign.data.partition import Partition
from featalign.errors import BadOption, CorruptFile

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
    """

    name: str
    model: nn.Module
    indices: np.ndarray
    counts: np.ndarray
    seed: int
    losses: tuple[float, ...] = field(default=(), repr=False)
    key: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Name, label counts, seed, losses and fingerprint, without weights."""
        return {
            "name": self.name,
            "samples": len(self.indices),
            "counts": self.counts.tolist(),
            "seed": self.seed,
            "losses": list(self.losses),
            "key": self.key,
        }


def client_folder(key: str) -> Path:
    """Where the cache keeps a trained client."""
    return storage.cache_folder() / "clients" / key


def train_clients(
    dataset: Dataset,
    partition: Partition,
    model_config: ModelConfig | None = None,
    train_config: TrainConfig | None = None,
    seed: int = 0,
    progress: bool = True,
    cache: bool = True,
    shared_init: bool = False,
) -> list[Client]:
    """Train one client per part of a partition, or load it when it was trained before.

    Args:
        dataset, partition: the data and who sees what; inputs are taken from the training split.
        model_config: defaults to the MLP that suits the data set.
        train_config: defaults to the recipe that suits the data set.
        seed: client k starts from initialisation seed `1000 * seed + k`, and sees its samples in an order of its own.
        progress: show a bar over epochs for each client that is trained.
        cache: read and write the cache; an interrupted run goes on from the clients that were finished.
        shared_init: all clients start from the same weights (as rounds of federated averaging do).

    Raises `BadOption` for a partition of another data set, `NotFinite` for a client that diverged, `CorruptFile` for a
    truncated cache file.
    """
    from featalign.clients.models import MLPConfig

    model_config = model_config or MLPConfig.for_dataset(dataset)
    train_config = train_config or TrainConfig.for_dataset(dataset)
    if max(int(part.max()) for part in partition.indices) >= len(dataset.train_labels):
        raise BadOption(f"the partition deals samples that '{dataset.name}' does not have; partition its train_labels")
    clients = []
    for k, name in enumerate(partition.client_names):
        init_seed = 1000 * seed + (0 if shared_init else k)
        identity = {
            "dataset": dataset.digest,
            "indices": partition.digests[k],
            "model": model_config.to_dict(),
            "train": train_config.to_dict(),
            "seeds": [init_seed, 1000 * seed + k],
            "version": VERSION,
        }
        key = storage.fingerprint(identity)
        model = build(model_config, init_seed)
        if cache and client_folder(key).is_dir():
            losses = _restore(model, key, name)
        else:
            chosen = partition.indices[k]
            losses = train(
                *(model, dataset.train_inputs[chosen], dataset.train_labels[chosen], train_config),
                *(1000 * seed + k, progress, f"client {name}, seed {seed}"),
            )
            if cache:
                _save(model, key, identity, losses)
        clients.append(Client(name, model, partition.indices[k], partition.counts[k], seed, tuple(losses), key))
    return clients


def _save(model: nn.Module, key: str, identity: dict[str, Any], losses: list[float]) -> None:
    with storage.atomic_folder(client_folder(key), overwrite=True) as folder:
        storage.save_tensors(folder / "weights.safetensors", model.state_dict())
        storage.write_json(folder / "client.json", {**identity, "losses": losses})


def _restore(model: nn.Module, key: str, name: str) -> list[float]:
    """Load cached weights into a model and return the losses of its training."""
    folder = client_folder(key)
    try:
        model.load_state_dict(storage.load_tensors(folder / "weights.safetensors"))
        losses = storage.read_json(folder / "client.json")["losses"]
    except (CorruptFile, OSError, RuntimeError, KeyError) as error:
        raise CorruptFile(f"cached client '{name}' is truncated; delete '{folder}' and run again") from error
    model.eval()
    check_finite(model, name)
    log.info("client %s: loaded from %s", name, folder)
    return losses
