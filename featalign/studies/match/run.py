"""`match` takes the user's own dictionaries or networks; `run` those on disk."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from featalign import options as typed
from featalign import storage
from featalign.align.geometry import MatchWarning
from featalign.data.task import Task
from featalign.errors import BadOption
from featalign.studies.match import browser
from featalign.studies.match.compare import Compared, compare_codes, compare_geometry
from featalign.studies.match.config import MatchConfig, MatchRunConfig
from featalign.studies.match.quality import quality_rows
from featalign.studies.match.reading import NetworkRows, inputs_of, read, rows_of
from featalign.studies.match.result import MatchResult, Material
from featalign.studies.match.subjects import Subject, subjects_of
from featalign.studies.match.training import split, train_bases
from featalign.studies.match.universe import cycle_rows, universe_rows


def match(
    *bases: Any,
    models: Any = None,
    inputs: Any = None,
    site: Any = None,
    names: Sequence[str] | None = None,
    tokenizer: Any = None,
    task: Task | str | None = None,
    title: str = "",
    out: Path | str | None = None,
    overwrite: bool = False,
    progress: bool = True,
    **settings: Any,
) -> MatchResult:
    """Which latents of A are latents of B, which are split or merged, and which are nobody else's?

    >>> result = fa.match(sae_a, sae_b, models=(model_a, model_b), inputs=texts, tokenizer=tokenizer,
    ...                   site="blocks.0.hook_resid_post", out="page")
    >>> result.pairs, result.own, result.summary

    Args:
        bases: two or more dictionaries: ours, folders, sae-lens's `SAE` or release/sae_id, anything with encode and
            decode; or of each client a mapping `{site: basis}`. Without any, one is trained for every site of every
            model, and everything is measured on inputs held out from that.
        models: one network for all bases, or one for each.
        inputs: what all networks read, anything `data.Inputs` takes (texts with a tokenizer; one long text is cut into
            windows). Without models: activations `[rows, units]` for all bases alike, or one source for each, as
            tensors, arrays or anything that gives batches of rows each time it is iterated. Without inputs latents are
            compared by the geometry of their decoders, with a warning.
        site: a hook name or module path, one for all bases or one for each; several where dictionaries are trained.
            Left out, it is where the dictionaries say that they belong.
        names: of the clients.
        task: of the networks, for loss recovered; read off outputs and targets by default.
        out: folder to write, page included.
        settings: other fields of `MatchConfig`: minimum, quantile, firings, witness, geometry, width, k, steps, ...

    Raises one line for what does not fit: `BadOption`, `SpaceMismatch` for another width or site, `DictionaryError`
    for what is no basis, `ProbeError` for inputs without a row.
    """
    sites = () if site is None else (site,) if not isinstance(site, (list, tuple)) else tuple(site)
    config = typed.read(MatchConfig, settings, "match")
    with _claimed(out, overwrite):
        subjects = subjects_of(bases, models, list(sites), names)
        result = match_subjects(subjects, inputs, tokenizer, task, config, title, progress)
        if out is not None:
            result.save(out, overwrite)
    return result


def run(
    config: MatchRunConfig, out: Path | str | None = None, overwrite: bool = False, progress: bool = True
) -> MatchResult:
    """Match dictionaries on disk, or those of networks on disk, and write the folder.

    Raises `FolderExists` before any work, `DictionaryError` for folders that hold no dictionary, `BadOption` for texts
    without a model or the reverse.
    """
    from featalign.studies.match.sources import load_models

    if config.texts and not config.models:
        raise BadOption("--texts needs --model: the folder of the language model that reads them")
    if config.models and not config.texts:
        raise BadOption("--model needs --texts: a file with one text per line")
    named = " and ".join(Path(base).name for base in config.bases or config.models)
    folder = Path(out) if out else Path("reports") / f"match-{storage.safe_name(named)}"
    with storage.claim(folder, overwrite):
        networks, tokenizer, texts = load_models(config)
        subjects = subjects_of(config.bases, networks or None, list(config.sites), None)
        result = match_subjects(subjects, texts, tokenizer, None, config, named, progress)
        result.save(folder, overwrite)
    return result


@contextmanager
def _claimed(out: Path | str | None, overwrite: bool) -> Iterator[None]:
    if out is None:
        yield
    else:
        with storage.claim(out, overwrite):
            yield


def match_subjects(
    subjects: list[Subject],
    inputs: Any,
    tokenizer: Any,
    task: Task | str | None,
    config: MatchConfig,
    title: str,
    progress: bool,
) -> MatchResult:
    """The result for clients that are resolved."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", MatchWarning)
        material, found = _compared(subjects, inputs, tokenizer, config, progress)
    for warning in told:
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    frames: dict[str, Any] = {"pairs": found.pairs, "features": found.features, "summary": found.summary}
    frames["quality"], notes = quality_rows(subjects, found, material, task)
    frames["universe"], frames["cycles"], more = [], [], []
    if len(subjects) > 2:
        names = [subject.name for subject in subjects]
        for label, each in found.correspondences.items():
            rows, note = universe_rows(label, names, each, config)
            frames["universe"] += rows
            frames["cycles"] += cycle_rows(label, names, each, rows, config.seed)
            more += [note] if note else []
    said = [str(warning.message) for warning in told if issubclass(warning.category, MatchWarning)]
    facts = {
        "title": title or " and ".join(subject.name for subject in subjects),
        "versions": storage.versions(),
        "clients": [subject.name for subject in subjects],
        "compared": found.how,
        "inputs": None if material is None or material.inputs is None else material.inputs.samples,
        "trained_here": bool(subjects[0].trained),
        "notes": [*dict.fromkeys(said), *notes, *more],
    }
    result = MatchResult(config, frames, facts, found.arrays, {}, material=material)
    shown, unshown = browser.content(result, config.cards)
    result.widgets = {"browser": shown} if shown else {}
    result.facts["notes"] += unshown
    return result


def _compared(
    subjects: list[Subject], inputs: Any, tokenizer: Any, config: MatchConfig, progress: bool
) -> tuple[Material | None, Compared]:
    _moved(subjects, config.device)
    if inputs is None:
        if not subjects[0].bases:
            raise BadOption("no inputs: dictionaries are trained on what the models do on inputs=")
        return Material(subjects, None, tokenizer, {}), compare_geometry(subjects, config)
    if subjects[0].bases:
        source = rows_of(subjects, inputs, tokenizer)
    else:
        assert subjects[0].model is not None
        trained_on, held = split(inputs_of(inputs, tokenizer, subjects[0].model), config)
        train_bases(subjects, trained_on, config, progress)
        source = NetworkRows(subjects, held)
    readings = read(subjects, source, progress)
    kept = source.inputs if isinstance(source, NetworkRows) else None
    by_label = {label: [client[label] for client in readings] for label in readings[0]}
    return Material(subjects, kept, tokenizer, by_label), compare_codes(subjects, by_label, config, progress)


def _moved(subjects: Sequence[Subject], device: str | None) -> None:
    if device is not None:
        for subject in subjects:
            if isinstance(subject.model, nn.Module):
                subject.model.to(device)
