"""What fusion costs as networks grow deep and clients many: seconds and memory of one fusion with its refit.

Networks are untrained (cost does not depend on what they learned), with normalisation statistics of their inputs.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

from featalign.bench.fusion import Peak
from featalign.errors import BadOption

if TYPE_CHECKING:
    import torch

    from featalign.clients.models import ModelConfig

CASES = ("deep", "clients")


@dataclass(frozen=True)
class ScaleRow:
    """One fusion.

    Attributes:
        case: deep or clients.
        method: registered name; with its refit.
        clients: fused into one.
        layers: affine maps and normalisations of a network.
        rows: inputs times positions that the refit reads.
        seconds: by the clock, and of all threads together (`processor`).
        memory: peak resident megabytes of the process.
        ratio: of processor seconds to those of the fewest clients.
    """

    case: str
    method: str
    clients: int
    layers: int
    rows: int
    seconds: float
    processor: float
    memory: float
    ratio: float


@dataclass(frozen=True)
class ScaleBench:
    """All rows."""

    rows: tuple[ScaleRow, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"rows": [asdict(row) for row in self.rows]}


def scale(
    cases: Sequence[str] = CASES,
    clients: Sequence[int] = (2, 4, 8, 16),
    method: str = "zip",
    positions: int = 60_000,
    progress: bool = True,
) -> ScaleBench:
    """Fuse two residual networks of 71 layers (`deep`), and ever more perceptrons (`clients`).

    deep: SpliceAI-10k's shape (Jaganathan et al. 2019): width 32, kernels 11, 11, 21, 41 with dilations 1, 4, 10, 25,
    on so many `positions`, in sequences of 5,000. clients: OTFusion's perceptron 784-400-200-100-10 on 2,000 inputs.
    Raises `BadOption` for another case and for fewer than two clients.
    """
    from tqdm.auto import tqdm

    if wrong := [case for case in cases if case not in CASES]:
        raise BadOption(f"unknown case '{wrong[0]}'; choices: {', '.join(CASES)}")
    if any(count < 2 for count in clients) or positions < 1:
        raise BadOption(f"clients {tuple(clients)}, positions {positions}; give at least 2 clients and 1 position")
    plans = {"deep": _deep(method, positions), "clients": _many(method, sorted(clients))}
    total = ("deep" in cases) + ("clients" in cases) * len(clients)
    fusions = chain.from_iterable(plan for case, plan in plans.items() if case in cases)
    return ScaleBench(tuple(tqdm(fusions, "scale", total, unit=" fusions", disable=not progress, leave=False)))


def _deep(method: str, positions: int) -> Iterator[ScaleRow]:
    import torch

    from featalign.clients.families.conv1d import Conv1dConfig

    length = min(5000, positions)
    draw = torch.randint(4, (max(2, positions // length), length), generator=torch.Generator().manual_seed(0))
    inputs = torch.nn.functional.one_hot(draw, 4).float().transpose(1, 2).contiguous()
    config = Conv1dConfig(width=32, kernels=(11, 11, 21, 41), dilations=(1, 4, 10, 25), blocks=4)
    yield _row("deep", method, config, 2, inputs, draw.numel(), None)


def _many(method: str, clients: Sequence[int]) -> Iterator[ScaleRow]:
    import torch

    from featalign.clients.families.mlp import MLPConfig

    inputs = torch.rand(2000, 784, generator=torch.Generator().manual_seed(0))
    first: float | None = None
    for count in clients:
        row = _row("clients", method, MLPConfig(784), count, inputs, len(inputs), first)
        first = first or row.processor
        yield row


def _row(
    case: str, method: str, config: ModelConfig, clients: int, inputs: torch.Tensor, rows: int, first: float | None
) -> ScaleRow:
    """The fusion of so many networks of a configuration; `first` are the seconds that the ratio is taken to."""
    import torch
    from torch import nn

    from featalign.clients import Cohort, build
    from featalign.fuse import FusionProblem, solve
    from featalign.spaces import affine

    networks = []
    for seed in range(clients):
        network = build(config, seed).train()
        with torch.no_grad():
            network(inputs[:2])
        networks.append(network.eval())
    kinds = nn.modules.batchnorm._BatchNorm
    layers = sum(affine.is_affine(part) or isinstance(part, kinds) for part in networks[0].modules())
    cohort = Cohort.of(networks, inputs, task="classification")
    peak, began, used = Peak(), time.perf_counter(), time.process_time()
    solve(FusionProblem(cohort), method, refit=True)
    seconds, processor = time.perf_counter() - began, time.process_time() - used
    ratio = processor / (first or processor)
    return ScaleRow(case, method, clients, layers, rows, seconds, processor, peak.megabytes(), ratio)
