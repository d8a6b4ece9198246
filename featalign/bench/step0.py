"""Step 0: moving a network into another's basis must not change it. Also planted permutations, and what it costs."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

METHODS = ("ot-acts", "ot-wts", "weight-matching")


@dataclass(frozen=True)
class Step0Row:
    """One way of moving a client into another's basis.

    Attributes:
        model, method: architecture, and how the maps were chosen.
        own, moved: accuracy of the client before and after the move (the other client takes no part in it).
        error: largest change of a logit relative to the largest logit.
        seconds: to find the maps.
    """

    model: str
    method: str
    own: float
    moved: float
    error: float
    seconds: float


def step0(
    model: str = "resnet18",
    width: float = 0.125,
    samples: int = 4000,
    seed: int = 0,
    progress: bool = True,
) -> list[Step0Row]:
    """Train two small clients of an image model on halves of `samples` pictures, and move one into the other's basis.

    The clients are trained for two epochs: the test is about maps, not about accuracy.
    """
    from featalign.align import align
    from featalign.align.heads import aligned_state
    from featalign.clients import Cohort, TrainConfig, evaluate, models, train_clients
    from featalign.data import load, partition
    from featalign.fuse import FusionProblem
    from featalign.spaces import check, rebuilt
    from featalign.spaces.capture import outputs_of
    from featalign.spaces.check import output_change

    whole = load("cifar10", progress=progress)
    dataset = replace(
        whole,
        name=f"{whole.name}-{samples}",
        train_inputs=whole.train_inputs[:samples],
        train_labels=whole.train_labels[:samples],
        test_inputs=whole.test_inputs[:2000],
        test_labels=whole.test_labels[:2000],
    )
    kind: Any = models[model]
    options = {} if model == "vit" else {"width": width}
    recipe = TrainConfig(epochs=2, batch_size=64, lr=2e-3, optimizer="adam", schedule="cosine")
    parts = partition(dataset.train_labels, "iid", 2, seed, dataset.class_names)
    a, b = train_clients(dataset, parts, kind.for_dataset(dataset, **options), recipe, seed, progress)
    probe = dataset.train_inputs[:200]
    cohort = Cohort.of([a.model, b.model], probe, (dataset.test_inputs, dataset.test_labels))
    source, graph = cohort.modules[0], cohort.graphs[0]
    check(graph, source, probe[:2])
    own = evaluate(source, cohort.evaluation)["accuracy"]
    rows = []
    for method in METHODS:
        began = time.perf_counter()
        alignment = align(FusionProblem(cohort).pair(0), method)
        seconds = time.perf_counter() - began
        carried = rebuilt(source, aligned_state(source, graph, alignment))
        error = output_change(outputs_of(source, probe), outputs_of(carried, probe))
        rows.append(Step0Row(model, method, own, evaluate(carried, cohort.evaluation)["accuracy"], error, seconds))
    return rows


class ResidualMLP(nn.Module):
    """Blocks `x + W2 relu(W1 x)` around one stream, the smallest network with a skip."""

    def __init__(self, width: int, blocks: int = 3, inputs: int = 20, outputs: int = 10):
        super().__init__()
        self.embed = nn.Linear(inputs, width)
        self.up = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))
        self.down = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))
        self.head = nn.Linear(width, outputs)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Logits `[N, outputs]` of `[N, inputs]`."""
        x = self.embed(inputs).relu()
        for up, down in zip(self.up, self.down):
            x = (x + down(up(x).relu())).relu()
        return self.head(x)


@dataclass(frozen=True)
class PlantedRow:
    """How often a planted permutation of every space of a residual MLP was found, all units of all spaces right."""

    width: int
    method: str
    trials: int
    recovered: float
    units: float


def planted(widths: Sequence[int] = (30, 50), trials: int = 100, samples: int = 500) -> list[PlantedRow]:
    """Permute every space of random residual MLPs at random and ask each method for the permutations back."""
    from featalign.align import align
    from featalign.clients import Cohort
    from featalign.data import Regression
    from featalign.fuse import FusionProblem
    from featalign.spaces import Symmetry, moved, trace
    from featalign.spaces.check import random_transform

    rows = []
    for width in widths:
        whole, units = dict.fromkeys(METHODS, 0), dict.fromkeys(METHODS, 0.0)
        for trial in range(trials):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(trial)
                source, probe = ResidualMLP(width), torch.randn(samples, 20)
            generator = torch.Generator().manual_seed(trial)
            graph = trace(source, probe[:2])
            truth = {s.name: random_transform(s.size, Symmetry.PERMUTATION, generator) for s in graph.hidden}
            target = copy.deepcopy(source)
            target.load_state_dict(moved(source, graph, truth))
            problem = FusionProblem(Cohort.of([source, target], probe, task=Regression()))
            for method in METHODS:
                maps = align(problem.pair(0), method).maps
                right = [(maps[n].out.argmax(0) == truth[n].out.argmax(0)).double().mean() for n in truth]
                whole[method] += int(min(right) == 1)
                units[method] += float(sum(right)) / len(right)
        rows += [PlantedRow(width, m, trials, whole[m] / trials, units[m] / trials) for m in METHODS]
    return rows


@dataclass(frozen=True)
class Costs:
    """Seconds and peak memory of the tools on a full-size network. Memory is that of the whole process so far."""

    trace_seconds: float
    align_seconds: float
    align_peak_mb: float
    capture_seconds: float
    capture_peak_mb: float


def costs(model: str = "resnet18", images: int = 200, captured: int = 10_000) -> Costs:
    """Trace an untrained pair of full width, align it on `images`, and stream `captured` images through capture."""
    import resource

    from featalign.align import align
    from featalign.clients import Cohort, build, models
    from featalign.fuse import FusionProblem
    from featalign.spaces import stream, trace
    from featalign.spaces.moments import Moments

    def peak() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    kind: Any = models[model]
    a, b = (build(kind(), seed).eval() for seed in range(2))
    generator = torch.Generator().manual_seed(0)
    example = torch.randn(images, 3, 32, 32, generator=generator)
    trace(nn.Linear(2, 2), torch.zeros(2, 2))  # torch's own first-use set-up
    began = time.perf_counter()
    trace(a, example[:2])
    traced = time.perf_counter()
    small: Any = kind(width=0.125)
    client = build(small, 0).eval()
    sites = [space.pre for space in trace(client, example[:2]).hidden if space.pre is not None]
    moments = {site: Moments() for site in sites}
    pictures = torch.randn(captured, 3, 32, 32, generator=generator)
    start = time.perf_counter()
    for _, held in stream(client, pictures, sites, batch_size=100):
        for site, activations in held.items():
            moments[site].update(activations)
    streamed, capture_peak = time.perf_counter() - start, peak()
    del pictures
    start = time.perf_counter()
    align(FusionProblem(Cohort.of([a, b], example, task="classification")).pair(0), "ot-acts")
    return Costs(traced - began, time.perf_counter() - start, peak(), streamed, capture_peak)
