"""Superposed linear spaces reduced by projection, by re-packing a joint dictionary's features, or by Procrustes.

Two kinds of networks: autoencoders of word presence in Shakespeare's sentences, whose bottleneck is narrower than their
vocabulary, and character transformers, whose stream is. All rows of a pair share the probe and the refit.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from featalign.align.regime import regime
from featalign.errors import BadOption
from featalign.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Callable

    from featalign.clients import Cohort
    from featalign.dictionaries import Dictionary
    from featalign.fuse import FusionProblem

    Networks = Callable[[int, int, int, bool], Cohort]

NETWORKS: Registry[Networks] = Registry("superposed networks")
ROWS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "projection": ("zip", {"linear": "project"}),
    "repack": ("zip", {"linear": "repack"}),
    "procrustes": ("procrustes", {}),
    "joint dictionary": ("joint-dictionary", {}),  # re-packed in the reference's atoms: networks of one linear code
}
WORDS = 256
PROBE = 4000


@dataclass(frozen=True)
class RepackRow:
    """One fused network.

    Attributes:
        networks, width, seed: which pair; width of the linear space.
        regime: what the relation of the clients' linear spaces was called before anything was fused; `linear`: share of
            one client's variance that the best linear map of the other explains.
        row: projection, repack or procrustes, refitted; joint dictionary where the network is one linear code.
        loss: held out, at equal weights; `excess`: over the mean loss of the clients.
        seconds: of the fusion.
    """

    networks: str
    width: int
    seed: int
    regime: str
    linear: float
    row: str
    loss: float
    excess: float
    seconds: float


def repack(
    networks: Sequence[str] = (),
    widths: Sequence[int] = (),
    seeds: int = 2,
    steps: int = 1000,
    progress: bool = True,
) -> list[RepackRow]:
    """Train (or load) the pairs and fuse each in every way.

    `widths` of the linear spaces: 8, 16, 32 and 48 unless given. Raises `UnknownName` for other networks, `BadOption`
    for fewer than one seed.
    """
    if seeds < 1:
        raise BadOption(f"seeds = {seeds}; give at least 1")
    pairs = [
        (name, width, seed)
        for name in networks or NETWORKS.names()
        for width in widths or (8, 16, 32, 48)
        for seed in range(seeds)
    ]
    return [row for name, width, seed in pairs for row in _rows(name, width, seed, steps, progress)]


def to_json(rows: Sequence[RepackRow]) -> list[dict[str, Any]]:
    """Plain values."""
    return [asdict(row) for row in rows]


def _rows(name: str, width: int, seed: int, steps: int, progress: bool) -> Iterator[RepackRow]:
    from featalign.clients import evaluate
    from featalign.fuse import FusionProblem, available, solve

    problem = FusionProblem(NETWORKS[name](width, seed, steps, progress))
    cohort = problem.cohort

    def loss(module: Any) -> float:
        return evaluate(module, cohort.evaluation, cohort.task)[cohort.task.metric.name]

    clients = sum(weight * loss(module) for weight, module in zip(problem.mixing, cohort.modules))
    verdict, linear, bases = _regime(problem)
    problem = replace(problem, dictionaries=bases)
    reasons = available(problem)
    for row, (method, options) in ROWS.items():
        if reasons[method] is not None:
            continue
        began = time.perf_counter()
        module = solve(problem, method, refit=True, **options).module
        seconds, found = time.perf_counter() - began, loss(module)
        yield RepackRow(name, width, seed, verdict, linear, row, found, found - clients, seconds)


def _regime(problem: FusionProblem) -> tuple[str, float, dict[str, tuple[Dictionary, ...]]]:
    """Of the widest linear space, with a dictionary of each client's own: its name, the linear share, the bases."""
    import torch

    from featalign.align.maps import ROTATIONS
    from featalign.dictionaries import train

    linear = [space for space in problem.graph.hidden if space.symmetry in ROTATIONS and space.after is not None]
    space = max(linear, key=lambda each: each.size)
    held: list[list[torch.Tensor]] = [[] for _ in problem.clients]
    for _, found, _ in problem.activations:
        for part, own, graph in zip(held, found, problem.graphs):
            values = own[graph[space.name].after]
            part.append(values.reshape(-1, values.shape[-1]))
    first, second = (torch.cat(part)[: 2 * PROBE] for part in (held[0], held[-1]))
    bases = tuple(train(part, seed=problem.cohort.seed, allow_narrow=True) for part in (first, second))
    verdict = regime(first, second, bases[0], bases[-1], symmetry=space.symmetry, seed=problem.cohort.seed)
    return verdict.name, verdict.linear, {space.name: bases}


@NETWORKS.register("words")
def words(width: int, seed: int, steps: int, progress: bool) -> Cohort:
    """Two seeds of an autoencoder of 256 words: a linear bottleneck, a free decoder, ReLU outputs; squared error."""
    import torch

    from featalign.clients import Cohort
    from featalign.data.text import shakespeare
    from featalign.toy import Schedule, ToyConfig, train
    from featalign.toy.words import word_presence

    found = word_presence(shakespeare(progress=progress), WORDS)
    config = ToyConfig(WORDS, width, tied=False)
    models = train(config, found.batches(), (2 * seed, 2 * seed + 1), Schedule(steps, 256, 5e-3)).modules()
    probe = found.batches()(PROBE, torch.Generator().manual_seed(seed))
    return Cohort.of(models, probe, (found.test, found.test), "regression", seed=seed)


@NETWORKS.register("characters")
def characters(width: int, seed: int, steps: int, progress: bool) -> Cohort:
    """Two seeds of a character transformer of two blocks on Shakespeare, 64 unlabelled windows; nats."""
    from featalign.bench.pairs import language_pair
    from featalign.clients import Cohort

    modules, probe, evaluation = language_pair(
        "seeds", steps, 64, seed=seed, progress=progress, width=width, hidden=4 * width
    )
    return Cohort.of(modules, probe, evaluation, "next-token", seed=seed)
