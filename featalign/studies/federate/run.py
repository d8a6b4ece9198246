"""`federate`: deal a data set to clients, run every aggregation, save round by round."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from featalign import options, storage
from featalign.clients import models
from featalign.data import load, partition
from featalign.data.partition import check_scheme
from featalign.errors import BadOption
from featalign.federated import Federation, InProcess, Server, drive
from featalign.federated.checkpoint import open_folder, restore
from featalign.storage.folders import MARKER
from featalign.studies.federate.config import FederateConfig
from featalign.studies.federate.result import FederateResult
from featalign.studies.result import CONFIG, config_dict
from featalign.tracking import Log, prefixed

CHECKPOINTS = "checkpoints"


def federate(
    config: FederateConfig | None = None,
    out: Path | str | None = None,
    resume: bool = False,
    progress: bool = True,
    log: Log | None = None,
) -> FederateResult:
    """Federated rounds on a data set, one run for each entry of `config.runs`.

    Args:
        config: None takes the one in `out`, to go on from.
        out: folder of the configuration, of every round as it is complete, and of results and page at the end.
        resume: go on from the last complete round of every run in `out`.
        log: receives every round's row, `log(metrics, round)`, with the run's name before each metric.

    Raises `FolderExists` for a folder that holds anything and is not to be resumed, `BadOption` before any work for
    settings that do not go together.
    """
    folder = None if out is None else Path(out)
    if config is None:
        if folder is None or not resume:
            raise BadOption("no configuration; pass config=, or the folder of a run with resume=True")
        config = FederateConfig.from_toml(folder / CONFIG)
    federation = federation_of(config)
    each = {name: run.settings(federation.recipe, config.seed) for name, run in config.each.items()}
    servers = {name: Server(federation, settings) for name, settings in each.items()}
    with ExitStack() as stack:
        if folder is not None:
            stack.enter_context(storage.claim(folder, overwrite=resume))
            storage.write_json(folder / MARKER, {"kind": FederateResult.kind, "version": 1})
            storage.write_bytes(folder / CONFIG, options.to_toml(config_dict(config)).encode())
        found = {}
        for name, server in servers.items():
            engine = InProcess(federation, server.settings.local)
            place = None
            if folder is not None:
                place = open_folder(folder / CHECKPOINTS / storage.safe_name(name), server, resume=True)
                engine.controls = restore(place, server)
            found[name] = drive(server, engine, config.each[name].rounds, place, progress, prefixed(log, name))
        result = FederateResult.gather(config, found, federation.task.metric)
        if folder is not None:
            result.write(folder)
            result.folder = folder
    return result


def federation_of(config: FederateConfig) -> Federation:
    """The clients of a configuration with their data."""
    scheme = check_scheme(config.split, **config.scheme_options)
    dataset = load(config.dataset, config.folder or None)
    if config.samples:
        kept = slice(0, config.samples)
        dataset = replace(dataset, train_inputs=dataset.train_inputs[kept], train_labels=dataset.train_labels[kept])
    split = partition(dataset.train_labels, config.split, config.clients, config.seed, dataset.class_names, **scheme)
    model = models[config.model].for_dataset(dataset, **config.model_options)
    return Federation.of(dataset, split, model, probe=config.probe, task=config.task)
