"""The quality of every dictionary that a match rests on."""

from __future__ import annotations

from collections.abc import Sequence

from featalign.data.task import Task
from featalign.dictionaries import Basis, Dictionary
from featalign.errors import FeatalignError
from featalign.spaces.splice import splice
from featalign.studies.match.compare import Compared
from featalign.studies.match.reading import Reading
from featalign.studies.match.result import Material
from featalign.studies.match.rows import QualityRow
from featalign.studies.match.subjects import Subject

SPLICED = 50_000  # rows that loss recovered is measured on


def quality_rows(
    subjects: Sequence[Subject], found: Compared, material: Material | None, task: Task | str | None
) -> tuple[list[QualityRow], list[str]]:
    """A row for every client and site, and notes where loss recovered could not be measured."""
    rows, notes = [], []
    for number, subject in enumerate(subjects):
        for label, basis in subject.bases.items():
            reading = found.readings[label][number] if found.readings else None
            row = QualityRow(label, subject.name, _kind(basis), len(basis.atoms), basis.atoms.shape[1])
            if reading is None:
                rows.append(row)
                continue
            recovered, note = _recovered(subject, label, basis, reading, material, task)
            notes += [note] if note else []
            rows.append(_measured(row, subject.trained.get(label), reading, recovered))
    return rows, list(dict.fromkeys(notes))


def _kind(basis: Basis) -> str:
    return basis.architecture if isinstance(basis, Dictionary) else basis.name


def _measured(row: QualityRow, trained: int | None, reading: Reading, recovered: float | None) -> QualityRow:
    codes = reading.codes
    return QualityRow(
        row.site, row.client, row.architecture, row.latents, row.units,
        explained_variance=reading.explained_variance, l0=codes.rows.nnz / codes.samples,
        dead_fraction=float((codes.firings == 0).mean()), loss_recovered=recovered, rows=codes.samples,
        rows_per_latent=codes.samples / row.latents, trained_rows=trained,
        measured_on="given inputs" if trained is None else "held-out",
    )  # fmt: skip


def _recovered(
    subject: Subject, label: str, basis: Basis, reading: Reading, material: Material | None, task: Task | str | None
) -> tuple[float | None, str]:
    """Loss recovered on some of the inputs, or why there is none."""
    if subject.model is None or material is None or material.inputs is None:
        return None, ""
    inputs = material.inputs
    per_input = max(1, reading.codes.samples // max(1, len(inputs)))
    try:
        few = inputs.sample(max(1, SPLICED // per_input)) if inputs.sized else inputs
        found = splice(
            subject.model, subject.sites[label], lambda rows: basis.decode(basis.encode(rows)), few, task=task,
            batch_size=few.batch_size,
        )  # fmt: skip
    except FeatalignError as error:
        return None, f"loss recovered of '{subject.name}' at '{label}' was not measured: {error}"
    return found.recovered, ""
