"""Curves with a prediction beside them: what a linear map explains over m/n, and fused loss over fused width."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from featalign.align.regime import regime
from featalign.registry import Registry
from featalign.toy.features import Features
from featalign.toy.models import ToyConfig
from featalign.toy.training import Schedule, train
from featalign.toy_fusion.compare import compare
from featalign.toy_fusion.world import ToySettings


@dataclass(frozen=True)
class ExplainedCurve:
    """Share of one model's code that the best linear map of another's explains, held out.

    Attributes:
        n, widths: features and hidden units.
        independent, shared: measured `[widths][pairs]`, for independent and for shared initialisations.
    """

    n: int
    widths: tuple[int, ...]
    independent: list[list[float]]
    shared: list[list[float]]

    @property
    def prediction(self) -> list[float]:
        """`m / n`: overlap of two random m-dimensional subspaces of the n-dimensional feature space."""
        return [m / self.n for m in self.widths]

    def to_dict(self) -> dict[str, Any]:
        return {
            "n": self.n,
            "widths": list(self.widths),
            "prediction": self.prediction,
            "independent": {"mean": [float(np.mean(v)) for v in self.independent], "values": self.independent},
            "shared": {"mean": [float(np.mean(v)) for v in self.shared], "values": self.shared},
        }


def explained_curve(
    n: int = 32, widths: Sequence[int] = (2, 4, 8, 12, 16, 24, 32), density: float = 0.04, pairs: int = 4
) -> ExplainedCurve:
    """Train pairs of models at each width and measure the linear map between them (methods.md 3.1).

    Models of a pair see different batches; `shared` pairs start from equal weights.
    """
    law, probe = (
        Features.uniform(n, density),
        Features.uniform(n, density).sample(4096, torch.Generator().manual_seed(5)),
    )
    independent, shared = [], []
    for m in widths:
        config, schedule = ToyConfig(n, m), Schedule(2000, 256, 5e-3)
        first = train(config, law, range(pairs), schedule, data_seed=1).hidden(probe)
        same = train(config, law, range(pairs), schedule, data_seed=2).hidden(probe)
        independent.append([regime(first[i], same[(i + 1) % pairs]).linear for i in range(pairs)])
        shared.append([regime(first[i], same[i]).linear for i in range(pairs)])
    return ExplainedCurve(n, tuple(widths), independent, shared)


@dataclass(frozen=True)
class CapacityCurve:
    """Loss of the union decode over its width, for clients with features of their own.

    Attributes:
        widths: fused units.
        union, joint: calibrated loss of the union and of joint training at that width.
        clients: mean loss of the clients at their own width.
    """

    widths: tuple[int, ...]
    union: list[float]
    joint: list[float]
    clients: float

    def to_dict(self) -> dict[str, Any]:
        ratio = [u / max(j, 1e-12) for u, j in zip(self.union, self.joint)]
        return {
            "widths": list(self.widths), "union": self.union, "joint": self.joint, "ratio": ratio,
            "clients": self.clients,
        }  # fmt: skip


def capacity_curve(
    settings: ToySettings | None = None, widths: Sequence[int] = (8, 10, 12, 16, 20, 24)
) -> CapacityCurve:
    """Fuse at each width; the default is 16 + 16 features with 8 shared, in 8 units."""
    base = settings or ToySettings(shared=8, seeds=1)
    results = [compare(replace(base, width=width, methods=("union",)), progress=False) for width in widths]
    return CapacityCurve(
        tuple(widths),
        [float(np.mean(result.losses["union"]["calibrated"])) for result in results],
        [float(np.mean(result.joint)) for result in results],
        float(np.mean(results[0].single)),
    )


@dataclass(frozen=True)
class WordsCurve:
    """Words over hidden width: where rotations catch up with features, and what the regime said.

    Attributes:
        widths: hidden units.
        losses: `method -> [widths]`, calibrated; 'single' is one client.
        regimes: the verdict at each width.
    """

    widths: tuple[int, ...]
    losses: dict[str, list[float]]
    regimes: list[dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        return {"widths": list(self.widths), "losses": self.losses, "regimes": self.regimes}


def words_curve(
    widths: Sequence[int] = (16, 32, 64, 96, 128), seeds: int = 1, texts: Path | str | None = None
) -> WordsCurve:
    """Fuse autoencoders of word presence at each width."""
    methods = ("average", "neuron-ot", "procrustes", "procrustes-weights", "feature-ot")
    found = [
        compare(data="words", n=256, m=m, seeds=seeds, methods=methods, texts=texts, progress=False) for m in widths
    ]
    losses = {name: [float(np.mean(result.losses[name]["calibrated"])) for result in found] for name in methods}
    losses["single"] = [float(np.mean(result.single)) for result in found]
    return WordsCurve(tuple(widths), losses, [result.regimes[0] for result in found])


CURVES: Registry[Callable[[], Any]] = Registry("curve")
CURVES.register("explained")(explained_curve)
CURVES.register("capacity")(capacity_curve)
CURVES.register("words")(words_curve)
