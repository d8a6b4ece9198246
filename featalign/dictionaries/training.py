"""Training of sparse dictionaries: one loop for every architecture, several dictionaries of one shape at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from featalign.dictionaries import preflight
from featalign.dictionaries.architectures import ARCHITECTURES
from featalign.dictionaries.dictionary import Dictionary
from featalign.dictionaries.rows import Activations, Rows, as_rows, held_rows, place
from featalign.dictionaries.trainer import Plan, Trainer, held_out
from featalign.errors import BadOption, DictionaryError, NotFinite, SpaceMismatch
from featalign.spaces.store import ActivationStore
from featalign.threads import over_cores
from featalign.tracking import Log, prefixed

LARGE = 2**18  # encoder entries from which one dictionary is worth several threads


def train(
    activations: Activations,
    width: int | None = None,
    architecture: str = "topk",
    k: float | None = None,
    seed: int = 0,
    steps: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    progress: bool = False,
    metadata: Mapping[str, Any] | None = None,
    targets: Activations | None = None,
    checkpoint: Path | str | None = None,
    trainer: str = "featalign",
    start: Dictionary | None = None,
    allow_narrow: bool = False,
    log: Log | None = None,
) -> Dictionary:
    """Train one sparse dictionary of activations `[samples, n]` or `[samples, tokens, n]`.

    Tensors or arrays of any float type; a memory-mapped array and a `spaces.ActivationStore` are read batch by batch.

    Args:
        width: latents; None takes 4 n (2 n above 128 units), and the data caps it at 50 firings per latent.
        architecture: a registered name: 'topk', 'batchtopk', 'relu', 'jumprelu', 'gated', 'matryoshka', 'transcoder'
            or one of your own (`@fa.dictionaries.architecture`).
        k: active latents per sample, at most `width` (more warns and is taken as that); penalised architectures steer
            their coefficient until L0 meets it. None takes `1.2 sqrt(n)`.
        steps, batch_size, lr: None scales them to the data; the steps then pass over it at least once.
        metadata: what identifies the dictionary (client, space); used in messages and saved with it.
        targets: what a transcoder reconstructs, the post-activations `[samples, m]`; None takes `relu(activations)`.
        trainer: 'featalign', or 'sae-lens' to run that library's own loop on the same data for comparison.
        checkpoint: file that a killed run resumes from; removed when the run ends.
        start: dictionary of the same architecture and shape that training goes on from, such as the last round's; its
            width is taken.
        allow_narrow: accept a dictionary with fewer latents than units where the data carry no more.
        log: receives the metrics of the history as they are recorded, `log(metrics, step)` (see `fa.tracking`).

    Raises `DictionaryError` for too few samples or a dead layer, and where the data carry no dictionary as wide as the
    layer (`allow_narrow`, or a smaller `width`, accept it), `NotFinite` for NaN and for a loss that is not
    finite, `BadOption` for options out of range, `UnknownName` for an architecture that is not registered. A tenth of
    the samples is held out for `quality`. Source: Gao et al. 2024 (arXiv:2406.04093).
    """
    wanted: dict[str, Any] = {"width": width, "k": k, "steps": steps, "batch_size": batch_size, "lr": lr}
    wanted["allow_narrow"] = allow_narrow or start is not None
    if start is not None:
        wanted |= {"width": width or start.width, "k": k or start.k}
    if trainer == "sae-lens":
        from featalign.dictionaries.reference import train_with_sae_lens

        rows = held_rows(activations, metadata)
        plan = resolve(rows, architecture, metadata or {}, **wanted)
        return train_with_sae_lens(rows, plan, seed, metadata or {}).dictionary
    if trainer != "featalign":
        raise BadOption(f"trainer '{trainer}'; choose 'featalign' or 'sae-lens'")
    return train_many(
        [activations], architecture, (seed,), [metadata or {}], [targets], progress, checkpoint, log, [start], **wanted
    )[0][0]


def train_many(
    activations: Sequence[Activations],
    architecture: str = "topk",
    seeds: Sequence[int] = (0, 1),
    metadata: Sequence[Mapping[str, Any]] | None = None,
    targets: Sequence[Activations | None] | None = None,
    progress: bool = False,
    checkpoint: Path | str | None = None,
    log: Log | None = None,
    starts: Sequence[Dictionary | None] | None = None,
    **wanted: Any,
) -> list[list[Dictionary]]:
    """Train `len(seeds)` dictionaries for each activation tensor; those of equal shape run in one program.

    Returns one list of dictionaries (in the order of `seeds`) per entry of `activations`; `starts` are dictionaries to
    go on from, one per entry. `wanted` takes the options of `train`: width, k, steps, batch_size, lr, allow_narrow. A
    dictionary's numbers do not depend on what it was trained beside, up to float rounding. `log` receives metrics under
    `client.space.seed/`, of one dictionary plainly. Raises what `train` raises, and `SpaceMismatch` for activations and
    targets of different lengths.
    """
    metadata = metadata or [{} for _ in activations]
    metadata = [{**recorded(acts), **facts} for acts, facts in zip(activations, metadata)]
    targets = targets or [None for _ in activations]
    starts = starts or [None for _ in activations]
    jobs: dict[tuple[Any, ...], list[int]] = {}
    plans: list[Plan] = []
    outputs: list[Rows] = []
    transcodes = ARCHITECTURES[architecture].transcodes
    rows = [as_rows(acts, facts) for acts, facts in zip(activations, metadata)]
    for index, (acts, facts, target) in enumerate(zip(rows, metadata, targets)):
        plans.append(resolve(acts, architecture, facts, **wanted))
        check_start(starts[index], plans[-1], acts.shape[1], facts)
        outputs.append(acts if not transcodes else _rectified(acts) if target is None else as_rows(target, facts))
        if len(outputs[-1]) != len(acts):
            raise SpaceMismatch(f"{place(facts)}: {len(acts)} activations and {len(outputs[-1])} targets")
        jobs.setdefault((tuple(acts.shape), outputs[-1].shape[1], plans[-1]), []).append(index)
    found: dict[int, list[Dictionary]] = {}
    for members in jobs.values():
        runs = [(index, seed) for index in members for seed in seeds]

        def work(part: list[tuple[int, int]], plan: Plan = plans[members[0]]) -> list[Dictionary]:
            trainer = Trainer(
                plan,
                [rows[i] for i, _ in part],
                [outputs[i] for i, _ in part],
                [{"seed": seed, **metadata[i]} for i, seed in part],
                [seed for _, seed in part],
                [starts[i] for i, _ in part],
            )
            own = "-".join(f"{i}.{seed}" for i, seed in part) if len(rows) * len(seeds) > 1 else ""
            file = Path(f"{checkpoint}{own}") if checkpoint else None
            labels = [_label(metadata[i], i, seed) if len(rows) * len(seeds) > 1 else "" for i, seed in part]
            return trainer.run(progress, file, [prefixed(log, label) for label in labels] if log else ())

        large = rows[members[0]].shape[1] * plans[members[0]].width >= LARGE
        for (index, _), dictionary in zip(runs, spread(work, runs, large)):
            found.setdefault(index, []).append(dictionary)
    return [found[index] for index in range(len(rows))]


def recorded(activations: Activations) -> dict[str, Any]:
    """What a store says of its rows, for the metadata of dictionaries trained on it."""
    return activations.metadata if isinstance(activations, ActivationStore) else {}


def _rectified(rows: Rows) -> torch.Tensor:
    if isinstance(rows, ActivationStore):
        raise DictionaryError("a transcoder on stored activations needs targets=: a store of the site that it writes")
    return rows.relu()


def _label(metadata: Mapping[str, Any], index: int, seed: int) -> str:
    """Names a dictionary among several in a log."""
    parts = [str(metadata[key]) for key in ("client", "space") if metadata.get(key) is not None]
    return ".".join([*(parts or [str(index)]), str(seed)])


def spread(work: Callable[[list[Any]], list[Any]], runs: list[Any], large: bool = False) -> list[Any]:
    """Results of `work` over contiguous parts of `runs`, one part per core; one large dictionary keeps all threads."""
    threads = torch.get_num_threads()
    workers = min(threads, len(runs))
    if threads == 1 or (large and workers == 1):
        return work(runs)
    parts = [runs[len(runs) * i // workers : len(runs) * (i + 1) // workers] for i in range(workers)]
    return [result for results in over_cores(work, parts) for result in results]


def check_start(start: Dictionary | None, plan: Plan, units: int, metadata: Mapping[str, Any]) -> None:
    """Raise `DictionaryError` for a dictionary that training cannot go on from."""
    if start is None:
        return
    wanted, given = (plan.architecture, plan.width, units), (start.architecture, *start.atoms.shape)
    if given != wanted:
        raise DictionaryError(f"{place(metadata)}: start is {given}, the dictionary {wanted}; start from one like it")
    if ARCHITECTURES[plan.architecture].latents != ("b_enc",):
        raise DictionaryError(f"{place(metadata)}: '{plan.architecture}' trains from its own start; leave start out")


def resolve(
    activations: Rows,
    architecture: str,
    metadata: Mapping[str, Any],
    width: int | None = None,
    k: float | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    allow_narrow: bool = False,
) -> Plan:
    """Check the data and fill in what was not asked for."""
    ARCHITECTURES[architecture]
    preflight.inspect(activations, metadata)
    samples, units = activations.shape
    train_samples = samples - held_out(samples)
    k = preflight.default_k(units) if k is None else k
    if not 0 < k < float("inf"):
        raise DictionaryError(f"{place(metadata)}: k={k}; pass at least 1 active latent per sample")
    if width is not None and 1 <= width < k:
        preflight.warn(
            f"{place(metadata)}: k={k:g} of {width} latents; all are active on every sample, taken as k={width}"
        )
    width, wanted = preflight.choose_width(units, train_samples, k, width, metadata, allow_narrow)
    if batch_size is None:
        batch_size = 256 if train_samples < 5000 else 512
    once = -(-train_samples // max(1, batch_size))
    steps = max(1000 if width <= 1024 else 2000, once) if steps is None else steps
    lr = 1e-2 if lr is None else float(lr)
    if steps < 1 or batch_size < 1 or lr <= 0:
        raise BadOption(f"steps={steps}, batch_size={batch_size}, lr={lr:g}; all must be positive")
    if not math.isfinite(lr):
        raise NotFinite(f"{place(metadata)}: lr={lr}; pass a finite learning rate such as 0.01")
    capped = wanted if wanted > width else 0
    return Plan(architecture, width, min(k, width), int(steps), min(train_samples, int(batch_size)), lr, capped)
