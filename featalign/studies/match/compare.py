"""Every two clients compared at every site: by codes of shared rows, or by geometry where there are none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
import pandas as pd
import torch

from featalign.align.correspondence import Correspondence, correspond
from featalign.align.geometry import by_geometry, directions_agreement
from featalign.dictionaries import Basis, random_atoms
from featalign.studies.match.config import MatchConfig
from featalign.studies.match.frames import energy_shares, feature_frame, pair_rows, summary_rows
from featalign.studies.match.reading import Reading
from featalign.studies.match.rows import PairRow, SummaryRow
from featalign.studies.match.subjects import Subject
from featalign.studies.match.witness import crosscoder_columns, untrained_agreement, untrained_codes
from featalign.studies.result import framed

Pairwise = dict[tuple[int, int], Correspondence]


@dataclass
class Compared:
    """What was found, as frames.

    Attributes:
        how: what was compared: codes, cosine or gromov.
        correspondences: by site, of every two clients.
        readings: by site, of every client; empty without inputs.
        arrays: scores for the figures: `site/a/b/best` and `site/a/b/chance`, of the latents of both clients.
    """

    how: str = "codes"
    pairs: pd.DataFrame = field(default_factory=lambda: framed([], PairRow))
    features: pd.DataFrame = field(default_factory=pd.DataFrame)
    summary: list[SummaryRow] = field(default_factory=list)
    correspondences: dict[str, Pairwise] = field(default_factory=dict)
    readings: Mapping[str, Sequence[Reading]] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)

    def note_scores(self, label: str, names: tuple[str, str], found: Correspondence) -> None:
        """Keep the best scores of all alive latents, and those by chance."""
        for kind, sides in (("best", found.best), ("chance", found.chance)):
            values = np.concatenate([side[np.isfinite(side)] for side in sides])
            self.arrays["/".join((label, *names, kind))] = values.astype(np.float32)


def compare_codes(
    subjects: Sequence[Subject], readings: Mapping[str, Sequence[Reading]], config: MatchConfig, progress: bool
) -> Compared:
    """Every two clients by the correlation of their codes."""
    from tqdm.auto import tqdm

    result = Compared(readings=readings)
    frames, pairs = [], []
    jobs = [(label, *pair) for label in readings for pair in combinations(range(len(subjects)), 2)]
    bar = tqdm(jobs, disable=not progress, desc="matching")
    for label, held in readings.items():
        codes = [reading.codes for reading in held]
        energy = [energy_shares(reading.basis, each) for reading, each in zip(held, codes)]
        random = [
            untrained_codes(r.basis, r.sample, r.codes.rows.nnz / r.codes.samples, config.seed + 100 + number)
            for number, r in enumerate(held)
        ]
        witness = None
        if config.witness:
            witness = crosscoder_columns(
                [r.basis for r in held], [r.sample for r in held], config, config.seed, config.steps or None
            )
        found: Pairwise = {}
        for a, b in combinations(range(len(subjects)), 2):
            place = (label, subjects[a].name, subjects[b].name)
            each = found[a, b] = correspond(codes[a], codes[b], config, config.seed)
            controls = {
                "shuffled": each.by_chance, "untrained": untrained_agreement(random[a], random[b], config)
            }  # fmt: skip
            directions = _directions(held[a].basis, held[b].basis, config.seed)
            sides = (energy[a], energy[b])
            result.summary += summary_rows(place, each, controls, directions, sides, codes[a].samples)
            pairs += pair_rows(place, each, (codes[a], codes[b]), sides)
            result.note_scores(label, (subjects[a].name, subjects[b].name), each)
            bar.update()
        table = framed(pairs, PairRow)
        for number, subject in enumerate(subjects):
            frames.append(
                feature_frame(
                    label,
                    subject.name,
                    _sides(found, number),
                    codes[number],
                    energy[number],
                    table,
                    None if witness is None else witness[number],
                )
            )
        result.correspondences[label] = found
    bar.close()
    result.pairs, result.features = framed(pairs, PairRow), _stacked(frames)
    return result


def compare_geometry(subjects: Sequence[Subject], config: MatchConfig) -> Compared:
    """Every two clients by their decoders alone."""
    result = Compared(how=config.geometry)
    frames, pairs = [], []
    for label in subjects[0].bases:
        found: Pairwise = {}
        for a, b in combinations(range(len(subjects)), 2):
            place = (label, subjects[a].name, subjects[b].name)
            left, right = (subjects[k].bases[label] for k in (a, b))
            each, result.how = by_geometry(left.atoms, right.atoms, config, config.geometry, config.seed)
            found[a, b] = each
            result.summary += summary_rows(
                place, each, {"shuffled": each.by_chance}, _directions(left, right, config.seed), None, 0
            )
            pairs += pair_rows(place, each, None, None)
            result.note_scores(label, (subjects[a].name, subjects[b].name), each)
        table = framed(pairs, PairRow)
        for number, subject in enumerate(subjects):
            frames.append(feature_frame(label, subject.name, _sides(found, number), None, None, table))
        result.correspondences[label] = found
    result.pairs, result.features = framed(pairs, PairRow), _stacked(frames)
    return result


def _stacked(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    return pd.concat([frame.astype({"partner": "Int64"}) for frame in frames], ignore_index=True)


def _sides(found: Pairwise, client: int) -> dict[str, tuple[int, Correspondence]]:
    """The correspondences of one client, with its side in each."""
    return {str(pair): (pair.index(client), each) for pair, each in found.items() if client in pair}


def _directions(a: Basis, b: Basis, seed: int) -> dict[str, float]:
    """PW-MCC of two decoders of one width, and that of random directions."""
    if a.atoms.shape[1] != b.atoms.shape[1]:
        return {}
    draw = torch.Generator().manual_seed(seed)
    random = [random_atoms(len(basis.atoms), basis.atoms.shape[1], draw) for basis in (a, b)]
    return {"none": directions_agreement(a.atoms, b.atoms).mcc, "untrained": directions_agreement(*random).mcc}
