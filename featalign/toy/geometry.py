"""Geometry of superposition where the truth is known: what each feature gets, and how features share directions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from featalign.errors import SpaceMismatch
from featalign.toy.models import ToyModels

LEVELS = {
    "dedicated": 1.0,
    "tetrahedron": 3 / 4,
    "triangle": 2 / 3,
    "digon": 1 / 2,
    "pentagon": 2 / 5,
    "square antiprism": 3 / 8,
    "dropped": 0.0,
}
DROPPED = 0.1  # squared norm below which a feature is not stored
LINKED = 0.1  # squared cosine above which two features share a polytope


@dataclass(frozen=True)
class Geometry:
    """Norms, interference and dimensionality of the features of `M` models; every array starts with `[M, ...]`.

    Attributes:
        directions: `W [M, m, n]`, column i is the direction of feature i (the encoder).
    """

    directions: torch.Tensor

    def __post_init__(self) -> None:
        if self.directions.dim() != 3:
            raise SpaceMismatch(f"directions of shape {tuple(self.directions.shape)}; pass [models, units, features]")

    @classmethod
    def of(cls, models: ToyModels) -> Geometry:
        """From the encoders."""
        return cls(models.encoder.double())

    @property
    def gram(self) -> torch.Tensor:
        """`W^T W [M, n, n]`."""
        return self.directions.mT @ self.directions

    @property
    def norms(self) -> torch.Tensor:
        """`|W_i| [M, n]`: 0 is dropped, 1 is fully stored."""
        return self.directions.norm(dim=1)

    @property
    def interference(self) -> torch.Tensor:
        """`sum_{j != i} (w_i . W_j)^2 [M, n]` with `w_i` of unit norm; above 1 a feature is swamped by others."""
        squared = self.norms**2
        return ((self.gram**2).sum(2) - squared**2) / squared.clamp_min(1e-12)

    @property
    def dimensionality(self) -> torch.Tensor:
        """`D_i = |W_i|^4 / sum_j (W_i . W_j)^2 [M, n]`: the share of a dimension that feature i has to itself.

        `sum_i D_i <= rank(W) <= m`, with equality for tight packing (Elhage et al. 2022; Scherlis et al. 2022 call it
        capacity).
        """
        squared = self.norms**2
        return squared**2 / (self.gram**2).sum(2).clamp_min(1e-12)

    @property
    def capacity(self) -> torch.Tensor:
        """`sum_i D_i [M]`, at most m."""
        return self.dimensionality.sum(1)

    @property
    def coherence(self) -> torch.Tensor:
        """Largest |cosine| between two stored features, `[M]`."""
        cosine = self._cosines()
        return cosine.abs().amax((1, 2))

    @property
    def welch(self) -> torch.Tensor:
        """Welch's lower bound `sqrt((s - m) / (m (s - 1)))` on the coherence of the `s` stored features, `[M]`."""
        m = self.directions.shape[1]
        stored = (self.norms**2 > DROPPED).sum(1).double()
        return ((stored - m).clamp_min(0) / (m * (stored - 1).clamp_min(1))).sqrt()

    def _cosines(self) -> torch.Tensor:
        """Cosines between stored features, zero elsewhere and on the diagonal."""
        stored = self.norms**2 > DROPPED
        scale = self.norms.clamp_min(1e-12)
        cosine = self.gram / (scale[:, :, None] * scale[:, None, :])
        cosine = cosine * (stored[:, :, None] & stored[:, None, :])
        return cosine - torch.diag_embed(cosine.diagonal(dim1=1, dim2=2))

    def clusters(self, model: int = 0) -> list[list[int]]:
        """Stored features grouped by who interferes with whom: connected components of the Gram matrix.

        Features of one polytope (digon, triangle, pentagon) form one cluster; each spans its own subspace.
        """
        from scipy.sparse.csgraph import connected_components

        linked = (self._cosines()[model] ** 2 > LINKED).numpy()
        count, label = connected_components(linked, directed=False)
        stored = np.flatnonzero((self.norms[model] ** 2 > DROPPED).numpy())
        groups = [[int(i) for i in stored if label[i] == c] for c in range(count)]
        return sorted((group for group in groups if group), key=len, reverse=True)

    def level(self) -> list[list[str]]:
        """Name of the nearest level of each feature's dimensionality, `[M][n]`."""
        names, values = list(LEVELS), torch.tensor(list(LEVELS.values()), dtype=torch.float64)
        nearest = (self.dimensionality[..., None] - values).abs().argmin(-1)
        dropped = self.norms**2 <= DROPPED
        return [
            ["dropped" if gone else names[index] for index, gone in zip(row.tolist(), lost.tolist())]
            for row, lost in zip(nearest, dropped)
        ]

    def to_frame(self, model: int = 0) -> pd.DataFrame:
        """One row per feature of one model: norm, interference, dimensionality, level, cluster."""
        cluster = {feature: index for index, group in enumerate(self.clusters(model)) for feature in group}
        return pd.DataFrame(
            {
                "norm": self.norms[model].numpy(),
                "interference": self.interference[model].numpy(),
                "dimensionality": self.dimensionality[model].numpy(),
                "level": self.level()[model],
                "cluster": [cluster.get(feature, -1) for feature in range(self.norms.shape[1])],
            }
        )

    def to_dict(self) -> dict[str, Any]:
        """Capacity, coherence and Welch's bound per model."""
        return {
            "capacity": self.capacity.tolist(),
            "coherence": self.coherence.tolist(),
            "welch": self.welch.tolist(),
            "stored": (self.norms**2 > DROPPED).sum(1).tolist(),
        }


def phase(models: ToyModels, feature: int = -1) -> list[str]:
    """'dropped', 'superposed' or 'dedicated' for one feature of each model: the phases of Elhage et al. 2022."""
    geometry = Geometry.of(models)
    stored = geometry.norms[:, feature] ** 2 > 0.25
    alone = geometry.interference[:, feature] < 0.25
    return ["dropped" if not s else "dedicated" if a else "superposed" for s, a in zip(stored.tolist(), alone.tolist())]
