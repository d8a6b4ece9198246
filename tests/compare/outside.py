"""One of each, in one file from outside: a fusion method, a family, a task, a dictionary architecture and a figure."""

from dataclasses import dataclass
from math import prod

import plotly.graph_objects as go
import torch
from torch import nn

from featalign.align import SpaceMap, matcher
from featalign.clients import ModelConfig, models
from featalign.data.task import TASKS, Metric, Task
from featalign.dictionaries.architectures import architecture
from featalign.dictionaries.architectures.topk import TopK
from featalign.studies.compare.figures import figure


@matcher("reversed", needs=("equal-widths",))
def backwards(pair, *, shift: int = 0) -> SpaceMap:
    """Units in reverse order, which helps nobody."""
    flip = torch.eye(pair.target.size, dtype=torch.float64).flip(0).roll(shift, 0)
    return SpaceMap(flip, flip.T, pair.target.symmetry)


@models.register("outside")
@dataclass(frozen=True)
class OutsideConfig(ModelConfig):
    inputs: int = 64
    outputs: int = 10
    width: int = 12

    @classmethod
    def shaped(cls, shape, outputs, **options):
        return cls(prod(shape), outputs, **options)

    def module(self):
        return nn.Sequential(nn.Linear(self.inputs, self.width), nn.Tanh(), nn.Linear(self.width, self.outputs))


@TASKS.register("hinge")
@dataclass(frozen=True)
class Hinge(Task):
    metrics: tuple[Metric, ...] = (Metric("margin loss", "points", higher_is_better=False),)
    name = "hinge"

    def outputs_for(self, batch):
        return int(batch.targets.max()) + 1

    def loss(self, outputs, targets):
        return nn.functional.multi_margin_loss(outputs, targets.to(outputs.device), reduction="none")

    def score(self, outputs, targets):
        return {"margin loss": self.loss(outputs, targets)}


@architecture("twice")
class Twice(TopK):
    """TopK by another name."""


@figure("seconds", section="Seconds")
def seconds(result):
    rows = result.frames["rows"]
    return go.Figure(go.Bar(x=rows["seconds"].tolist(), y=rows["row"].tolist(), orientation="h"))
