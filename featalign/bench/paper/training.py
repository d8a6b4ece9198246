"""Training after fusion: fine-tuning, and distillation from a larger network."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from featalign.bench.paper.lab import ACTS, REFITTED, RULES, ZIP, Lab
from featalign.bench.paper.registry import experiment
from featalign.bench.paper.rows import Row
from featalign.clients import build, outputs, train
from featalign.data.tasks.distillation import Distillation, soft_targets


def epochs_of(
    lab: Lab, start: nn.Module, seed: int, part: str, row: str, epochs: int, lr: float, task: Any, targets: torch.Tensor
) -> Iterator[Row]:
    """Test accuracy before and after each epoch of training a copy of a network on the whole training split."""
    module, scores = copy.deepcopy(start), [lab.accuracy(start)]
    recipe = lab.recipe(epochs=epochs, lr=lr)
    train(
        module, lab.data.train_inputs, targets, task, recipe, seed, lab.progress, row,
        log=lambda _found, _step: scores.append(lab.accuracy(module)),
    )  # fmt: skip
    yield from (Row(seed, part, row, epoch, score) for epoch, score in enumerate(scores))


@experiment(
    "finetune",
    source="Tables 1 and 2",
    axis="epochs of fine-tuning",
    deviations=(
        "perceptrons; the paper's tables are VGG11 and ResNet18 on CIFAR-10 and VGG11 on CIFAR-100",
        "every start gets the same epochs at the same constant rate; the paper reports the best epoch",
    ),
)
def finetune(
    lab: Lab, seed: int, *, counts: tuple[int, ...] = (2, 4, 6, 8), epochs: int = 5, lr: float = 0.01
) -> Iterator[Row]:
    """After the same fine-tuning, where do fused networks, their parents and the ensemble stand?"""
    networks, labels = lab.whole(seed, max(counts)), lab.data.train_labels
    for count in counts:
        part = f"{count} networks"
        problem = lab.problem(networks[:count], seed)
        scores = [lab.accuracy(module) for module in problem.clients]
        yield from (row for row in lab.parents(problem, seed, part) if row.row == "ensemble")
        starts = {"best parent": networks[scores.index(max(scores))]}
        starts |= {way.row: lab.fused(problem, way).module for way in (*RULES, *REFITTED)}
        for row, start in starts.items():
            yield from epochs_of(lab, start, seed, part, row, epochs, lr, lab.data.task, labels)


@experiment(
    "distill",
    source="Section S12",
    axis="epochs of distillation",
    deviations=(
        "the student has half the widths of the paper's perceptron, which is the teacher",
        "the divergence is the mean over examples; the published code averages over classes too, a tenth of it",
    ),
)
def distill(
    lab: Lab,
    seed: int,
    *,
    temperatures: tuple[float, ...] = (1.0, 4.0, 8.0, 20.0),
    share: float = 0.7,
    factor: float = 0.5,
    epochs: int = 5,
    lr: float = 0.01,
) -> Iterator[Row]:
    """Which start does distillation from a wider network want: fused, random, or the student's own weights?"""
    teacher, student = lab.whole(seed)[0], lab.whole(seed, factor=factor)[0]
    problem = lab.problem([teacher, student], seed)
    targets = soft_targets(outputs(teacher, lab.data.train_inputs), lab.data.train_labels)
    starts = {"random": build(lab.config(factor), 1000 * seed + 7), "student": student}
    starts |= {f"fused by {way.row}": lab.fused(problem, way).module for way in (ACTS, ZIP)}
    for heat in temperatures:
        part = f"temperature {heat:g}"
        yield Row(seed, part, "teacher", None, lab.accuracy(teacher))
        for row, start in starts.items():
            task = Distillation(heat, share)
            yield from epochs_of(lab, start, seed, part, row, epochs, lr, task, targets)
