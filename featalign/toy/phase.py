"""Phase diagrams: what becomes of a feature as density and relative importance vary, from one batched training run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from featalign.toy.features import Features
from featalign.toy.geometry import Geometry
from featalign.toy.models import ToyConfig, ToyModels
from featalign.toy.training import Schedule, train

SCHEDULE = Schedule(steps=1200, batch_size=256, lr=1e-2)
PHASES = ("dropped", "superposed", "dedicated")


@dataclass(frozen=True)
class PhaseDiagram:
    """The last feature of `n` in `m < n` dimensions over a grid.

    Attributes:
        densities, importances: axes; the last feature's importance relative to the others'.
        norm: `|W_last|`, `[densities, importances]`, of the best of several seeds.
        interference: what other features write into its direction, `[densities, importances]`.
        models: the best model of every setting, densities varying slowest.
    """

    densities: tuple[float, ...]
    importances: tuple[float, ...]
    norm: np.ndarray
    interference: np.ndarray
    models: ToyModels

    @property
    def phase(self) -> np.ndarray:
        """Index into `PHASES`, `[densities, importances]`: not stored; stored with company; stored alone."""
        return np.where(self.norm**2 < 0.25, 0, np.where(self.interference > 0.25, 1, 2))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON holds them."""
        return {
            "densities": list(self.densities),
            "importances": list(self.importances),
            "norm": self.norm.tolist(),
            "interference": self.interference.tolist(),
            "phase": [[PHASES[value] for value in row] for row in self.phase.tolist()],
        }


def phase_diagram(
    densities: Sequence[float] = tuple(np.geomspace(1.0, 0.01, 10).round(4).tolist()),
    importances: Sequence[float] = tuple(np.geomspace(0.1, 10.0, 10).round(4).tolist()),
    n: int = 2,
    m: int = 1,
    seeds: int = 4,
    schedule: Schedule = SCHEDULE,
    progress: bool = False,
) -> PhaseDiagram:
    """Train `n` features in `m` dimensions over densities and the last feature's relative importance.

    Each setting trains from several seeds and keeps the model with the least loss, as in Elhage et al. 2022, figure
    "Superposition as a phase change" (n = 2, m = 1): the extra feature is dropped, superposed or takes the dimension.
    """
    laws = [Features((p,) * n, (1.0,) * (n - 1) + (weight,)) for p in densities for weight in importances]
    models = train(ToyConfig(n, m), laws, range(seeds), schedule, progress=progress)
    best = []
    for index, law in enumerate(laws):
        x = law.sample(4096, torch.Generator().manual_seed(index))
        batch = models[slice(index * seeds, (index + 1) * seeds)]
        best.append(index * seeds + int(batch.loss(x, torch.tensor(law.importance)).argmin()))
    models = models[best]
    geometry, shape = Geometry.of(models), (len(densities), len(importances))
    return PhaseDiagram(
        tuple(densities),
        tuple(importances),
        geometry.norms[:, -1].reshape(shape).numpy(),
        geometry.interference[:, -1].reshape(shape).numpy(),
        models,
    )
