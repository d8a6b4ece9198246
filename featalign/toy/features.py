"""Ground-truth features: who is active how often, how strongly, together with whom, and in which client."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from featalign.errors import BadOption, SpaceMismatch

RELATIONS = ("independent", "correlated", "anticorrelated", "hierarchical")


@dataclass(frozen=True)
class Features:
    """Law of sparse feature vectors `x [samples, n]`: `x_i = active_i * u_i`, `u_i` uniform on [0, 1].

    Attributes:
        density: probability that each feature is active, `[n]`.
        importance: weight of each feature in the loss, `[n]`.
        relation: how features 2i and 2i+1 depend on each other: 'independent'; 'correlated' (both or neither);
            'anticorrelated' (never both); 'hierarchical' (2i+1, the child, only fires where 2i does).

    Correlation keeps every feature's own density, as in the toy models of Elhage et al. 2022.
    """

    density: tuple[float, ...]
    importance: tuple[float, ...]
    relation: str = "independent"

    def __post_init__(self) -> None:
        if len(self.density) != len(self.importance) or not self.density:
            raise SpaceMismatch(f"{len(self.density)} densities for {len(self.importance)} importances; give one each")
        if min(self.density) < 0 or max(self.density) > 1:
            raise BadOption(f"densities from {min(self.density)} to {max(self.density)}; keep them in [0, 1]")
        if min(self.importance) < 0:
            raise BadOption(f"importance {min(self.importance)} is negative; use 0 for a feature that does not count")
        if self.relation not in RELATIONS:
            raise BadOption(f"relation '{self.relation}'; choices: {', '.join(RELATIONS)}")
        if self.relation != "independent":
            self._check_pairs()

    def _check_pairs(self) -> None:
        first, second = self.density[0::2], self.density[1::2]
        if len(first) != len(second):
            raise BadOption(f"{len(self.density)} features, relation '{self.relation}': pairs want an even number")
        if self.relation == "correlated" and first != second:
            raise BadOption("correlated features share one density within each pair")
        if self.relation == "anticorrelated" and any(p + q > 1 for p, q in zip(first, second)):
            raise BadOption("anticorrelated densities of a pair must not exceed 1 together")
        if self.relation == "hierarchical" and any(q > p for p, q in zip(first, second)):
            raise BadOption("a child feature cannot be denser than its parent")

    @classmethod
    def uniform(
        cls, n: int, density: float = 0.05, importance_decay: float = 1.0, relation: str = "independent"
    ) -> Features:
        """`n` features of one density; feature i has importance `importance_decay ** i`."""
        return cls((density,) * n, tuple(importance_decay**i for i in range(n)), relation)

    @property
    def n(self) -> int:
        """Number of features."""
        return len(self.density)

    def restricted(self, owned: torch.Tensor) -> Features:
        """The same law with the features outside the mask `owned [n]` never active (a client's own data)."""
        kept = tuple(p if own else 0.0 for p, own in zip(self.density, owned.tolist()))
        return Features(kept, self.importance, self.relation)

    def sample(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """`[count, n]` float32 feature vectors.

        One uniform number decides activity and size: given `u < p`, `u / p` is uniform on [0, 1].
        """
        p = torch.tensor(self.density)
        u = torch.rand(count, self.n, generator=generator)
        if self.relation == "independent":
            return torch.where(u < p, u / p.clamp_min(1e-12), 0.0)
        size = torch.rand(count, self.n, generator=generator)
        parent = u[:, 0::2]
        active = torch.zeros_like(u, dtype=torch.bool)
        active[:, 0::2] = parent < p[0::2]
        if self.relation == "anticorrelated":
            active[:, 1::2] = parent >= 1 - p[1::2]
        else:
            active[:, 1::2] = parent < p[1::2]  # the same event (correlated) or part of it (hierarchical)
        return torch.where(active, size, 0.0)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON holds them."""
        return asdict(self)


def overlap(clients: int, own: int, shared: int) -> torch.Tensor:
    """Which client has which feature: `[clients, shared + clients * own]` boolean masks.

    The first `shared` features belong to everybody, then come `own` features of each client in turn. Raises `BadOption`
    where a client would have none.
    """
    if clients < 1 or own < 0 or shared < 0 or own + shared == 0:
        raise BadOption(f"{clients} clients with {shared} shared and {own} own features; all must have some")
    masks = torch.zeros(clients, shared + clients * own, dtype=torch.bool)
    masks[:, :shared] = True
    for client in range(clients):
        masks[client, shared + client * own : shared + (client + 1) * own] = True
    return masks
