"""The network of `featalign diagnose` and its data: a file, a folder, a comparison, or one trained on a data set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from featalign import storage
from featalign.clients import MLPConfig, build, from_dict, models, train_clients
from featalign.data import load, partition
from featalign.data.datasets import Dataset
from featalign.data.inputs import Inputs
from featalign.data.task import Task
from featalign.errors import ArchitectureMismatch, BadOption
from featalign.studies.diagnose.config import DiagnoseRunConfig
from featalign.studies.language import language_model, lines_of


@dataclass
class Source:
    """What is diagnosed.

    Attributes:
        networks: the one that is, first, and its partners.
        data, held: inputs for the dictionaries, and those that the network was not trained on, where there are any.
        facts: what the page says about them.
    """

    name: str
    networks: dict[str, nn.Module]
    data: Inputs
    held: Inputs | None
    task: Task | str | None = None
    class_names: tuple[str, ...] = ()
    tokenizer: Any = None
    facts: dict[str, Any] = field(default_factory=dict)


def load_source(config: DiagnoseRunConfig, progress: bool = True) -> Source:
    """Read, or train, what a configuration names."""
    if config.model and config.run:
        raise BadOption("both a model and --run were given; give one")
    path = Path(config.model) if config.model else None
    if path is not None and path.is_dir() and (path / "config.json").is_file():
        return _transformers(path, config)
    if config.texts:
        raise BadOption("--texts belongs to a folder of a language model; other networks take --dataset")
    if config.run:
        return _compared(Path(config.run), progress)
    dataset = load(config.dataset, None, progress)
    if path is None:
        (member,) = train_clients(dataset, partition(dataset.train_labels, "iid", 1, 0, dataset.class_names), seed=0,
                                  progress=progress, device=config.device)  # fmt: skip
        return _on(dataset, config.dataset, {member.name: member.model}, "no")
    network = _folder(path) if path.is_dir() else _file(path, dataset)
    return _on(dataset, path.stem if path.is_file() else path.name, {path.name: network}, "unknown")


def _on(dataset: Dataset, name: str, networks: dict[str, nn.Module], saw: str) -> Source:
    """Networks on a data set: dictionaries from its training split, measures on its test split."""
    data = Inputs.of((dataset.train_inputs, dataset.train_labels), labelled=True)
    held = Inputs.of((dataset.test_inputs, dataset.test_labels), labelled=True)
    facts = {"network_saw_held_out": saw, "dataset": dataset.to_dict()}
    return Source(name, networks, data, held, dataset.task, tuple(dataset.class_names), facts=facts)


def _compared(folder: Path, progress: bool) -> Source:
    """The clients of a comparison, loaded from the cache or trained again: the first one, the others as partners."""
    from featalign.studies.compare.config import RunConfig, model_options

    config = RunConfig.from_toml(folder / "config.toml")
    dataset = load(config.dataset, config.folder or None, progress)
    parts = partition(
        dataset.train_labels, config.split, config.clients, 0, dataset.class_names, **config.scheme_options
    )
    network = models[config.model].for_dataset(dataset, **model_options(config.model, config.model_options))
    recipe = network.recipe(len(dataset.train_labels), **({"epochs": config.epochs} if config.epochs else {}))
    members = [m for m in train_clients(dataset, parts, network, recipe, 0, progress=progress) if not m.note]
    return _on(dataset, folder.name, {f"client {m.name}": m.model for m in members}, "no")


def _folder(path: Path) -> nn.Module:
    """A client as the cache keeps it: `client.json` names the family, `weights.safetensors` holds the weights."""
    if not (path / "client.json").is_file():
        raise ArchitectureMismatch(
            f"'{path}' holds neither config.json (transformers) nor client.json (a client); give a file of weights"
        )
    content = storage.read_json(path / "client.json")
    network = build(from_dict(content["model"]))
    _fill(network, storage.load_tensors(path / "weights.safetensors"), path)
    return network


def _file(path: Path, dataset: Dataset) -> nn.Module:
    """An MLP from its weights: widths and biases are read off the tensors."""
    if not path.is_file():
        raise ArchitectureMismatch(f"no file '{path}'; give the safetensors of a client or a fused model, or a folder")
    weights = storage.load_tensors(path)
    layers = sorted((key for key in weights if key.endswith(".weight")), key=lambda key: (len(key), key))
    if not layers or any(not key.startswith("fc") for key in layers):
        shown = ", ".join(list(weights)[:4])
        raise ArchitectureMismatch(
            f"'{path}' holds {shown}; only MLPs can be read from weights alone: give the client's folder, or call "
            "fa.diagnose(model)"
        )
    widths = [weights[layers[0]].shape[1], *(weights[key].shape[0] for key in layers)]
    if widths[0] != dataset.features:
        raise ArchitectureMismatch(f"'{path}' reads {widths[0]} inputs, '{dataset.name}' has {dataset.features}")
    shape = MLPConfig(widths[0], tuple(widths[1:-1]), widths[-1], bias=f"{layers[0][:-7]}.bias" in weights)
    network = build(shape)
    _fill(network, weights, path)
    return network


def _fill(network: nn.Module, weights: Mapping[str, torch.Tensor], path: Path) -> None:
    try:
        network.load_state_dict(dict(weights))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:160]
        raise ArchitectureMismatch(f"the weights in '{path}' do not fit the network: {reason}") from error


def _transformers(path: Path, config: DiagnoseRunConfig) -> Source:
    """A Hugging Face folder with its tokenizer, on the lines of a text file."""
    if not config.texts:
        raise BadOption(f"'{path}' is a language model; give its inputs with --texts FILE, one text per line")
    network, tokenizer = language_model(path)
    data = Inputs.of(lines_of(config.texts), tokenizer=tokenizer)
    return Source(path.name, {path.name: network}, data, None, tokenizer=tokenizer,
                  facts={"network_saw_held_out": "unknown"})  # fmt: skip
