"""Dictionaries of clients that come without: one for each site of each network, as wide as the data carry."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from featalign.data.inputs import Inputs
from featalign.dictionaries import train
from featalign.errors import ProbeError
from featalign.spaces.naming import hook_name_of
from featalign.studies.match.config import MatchConfig
from featalign.studies.match.reading import NetworkRows
from featalign.studies.match.subjects import Subject

FEWEST = 10  # inputs below which nothing can be held out


def split(inputs: Inputs, config: MatchConfig) -> tuple[Inputs, Inputs]:
    """Inputs that dictionaries are trained on, and those that everything is measured on."""
    inputs = inputs.gathered()
    if len(inputs) < FEWEST:
        raise ProbeError(f"{len(inputs)} inputs; to train dictionaries and hold some out, give at least {FEWEST}")
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(config.seed))
    held = max(1, round(config.held_out * len(inputs)))
    return inputs.subset(order[held:]), inputs.subset(order[:held].sort().values)


def train_bases(subjects: Sequence[Subject], inputs: Inputs, config: MatchConfig, progress: bool) -> None:
    """Give every client a dictionary at every site, trained on at most `config.rows` rows of the inputs.

    Raises `DictionaryError` where the rows carry no dictionary as wide as the layer and no width was asked for.
    """
    from tqdm.auto import tqdm

    gathered = training_rows(subjects, inputs, config.rows)
    jobs = [(subject, label) for subject in subjects for label in subject.sites]
    for number, (subject, label) in enumerate(tqdm(jobs, disable=not progress, desc="dictionaries")):
        rows = gathered[number]
        facts = {"client": subject.name, "space": label, "hook_name": _hook(subject, label)}
        subject.bases[label] = train(
            rows, config.width or None, config.architecture, config.k or None, config.seed + number,
            config.steps or None, metadata=facts,
        )  # fmt: skip
        subject.trained[label] = len(rows)
        gathered[number] = rows[:0]


def _hook(subject: Subject, label: str) -> str:
    assert subject.model is not None
    return hook_name_of(subject.model, subject.sites[label])


def training_rows(subjects: Sequence[Subject], inputs: Inputs, most: int) -> list[torch.Tensor]:
    """At most `most` rows of every client at every site, in order of clients, then sites; the same rows for all."""
    source = NetworkRows(subjects, inputs)
    share = min(1.0, most / max(1, source.rows or 1))
    generator = torch.Generator().manual_seed(0)
    parts: list[list[torch.Tensor]] = []
    for step in source:
        flat = [rows for client in step for rows in client.values()]
        parts = parts or [[] for _ in flat]
        for place, rows in zip(parts, flat):
            count = max(1, round(share * len(rows)))
            chosen = torch.randperm(len(rows), generator=generator.manual_seed(len(place)))[:count].sort().values
            place.append(rows[chosen].float().cpu())
    return [torch.cat(place) for place in parts]
