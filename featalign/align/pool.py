"""Unit pools: a fused layer may choose its units among the candidates of every client.

Neurons (and foldable transcoder latents) of all clients are rectified linear functions of the layer below, so any of
them can serve as a unit of the fused layer. The choice is greedy column-subset selection against what the next layers
read; the in-map is the least-squares reading of each client's units from the chosen ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from featalign.errors import BadOption

TARGETS = 1024  # beyond these, targets of a choice are projected at random
SAME = 1e-5  # relative rest up to which a unit is the duplicate of a chosen one


def select_columns(
    gram: torch.Tensor | Sequence[torch.Tensor], cross: torch.Tensor | Sequence[torch.Tensor], count: int
) -> list[int]:
    """Greedy column-subset selection: `count` units whose span explains most of the targets.

    At each step the unit that lowers the squared error of regressing the targets on the chosen units most is taken
    (orthogonal matching pursuit with several targets), and everything is deflated by it. Only Gram matrices are needed.
    Several of them, with as many targets, stand for several readers of the same units: their gains are summed. When
    the chosen units explain everything, the rest are those least like any chosen one.

    Raises `BadOption` when the pool is smaller than `count`.
    """
    grams = [gram] if isinstance(gram, torch.Tensor) else list(gram)
    readers = [
        _Reader(moments, each, count)
        for moments, each in zip(grams, [cross] if isinstance(cross, torch.Tensor) else cross, strict=True)
    ]
    size = len(grams[0])
    if count > size:
        raise BadOption(f"cannot choose {count} units from a pool of {size}; lower the fused width")
    free = torch.ones(size, dtype=torch.bool)
    chosen: list[int] = []
    for _ in range(count):
        usable = free & torch.stack([reader.fresh() for reader in readers]).any(0)
        if usable.any():
            gain = torch.stack([reader.gains() for reader in readers]).sum(0)
            best = int(torch.where(usable, gain, torch.full_like(gain, -1.0)).argmax())
            for reader in readers:
                reader.take(best)
        else:
            index = torch.as_tensor(chosen, dtype=torch.long)
            initial = readers[0].initial
            alike = grams[0][:, index].pow(2) / torch.outer(initial, initial[index])
            apart = 1 - (alike.amax(1) if chosen else torch.zeros_like(initial))
            best = int(torch.where(free, apart, torch.full_like(apart, -1.0)).argmax())
        free[best] = False
        chosen.append(best)
    return chosen


class _Reader:
    """What one map's view of the units leaves unexplained while units are chosen.

    Neither Gram matrix nor cross moments are deflated: pivoted Cholesky columns `factor` and what each chosen unit
    explained of the targets (`explained`) stand for it, so that a step reads the cross moments once and writes nothing
    of their size.
    """

    def __init__(self, gram: torch.Tensor, cross: torch.Tensor, count: int):
        self.gram, self.cross = gram, _sketched(cross)
        self.residual = gram.diagonal().clone()
        self.initial = self.residual.clone().clamp_min(1e-12)
        self.energy = self.cross.square().sum(1)
        self.negligible = 1e-12 * self.energy
        self.factor, self.explained = gram.new_zeros(len(gram), count), self.cross.new_zeros(count, self.cross.shape[1])
        self.taken = 0

    def fresh(self) -> torch.Tensor:
        """Units that the chosen ones do not explain yet."""
        return self.residual > 1e-12 * self.initial

    def gains(self) -> torch.Tensor:
        """By how much each unit would lower the squared error of the targets."""
        energy = torch.where(self.energy > self.negligible, self.energy, torch.zeros_like(self.energy))
        return torch.where(self.fresh(), energy / self.residual.clamp_min(1e-12), torch.zeros_like(energy))

    def take(self, best: int) -> None:
        """Deflate by a chosen unit, unless it is explained already."""
        if not self.fresh()[best]:
            return
        k = self.taken
        root = self.residual[best].sqrt()
        column = (self.gram[:, best] - self.factor[:, :k] @ self.factor[best, :k]) / root
        row = (self.cross[best] - self.factor[best, :k] @ self.explained[:k]) / root
        along = self.cross @ row - self.factor[:, :k] @ (self.explained[:k] @ row)
        self.energy += column * (column * row.square().sum() - 2 * along)
        self.residual -= column.square()
        self.factor[:, k], self.explained[k] = column, row
        self.taken += 1


def _sketched(cross: torch.Tensor) -> torch.Tensor:
    """Cross moments with so many targets that a random projection keeps their inner products: `TARGETS` of them.

    Many clients have many targets, most of them alike. Errors of the gains are a few per cent; a space of fewer
    dimensions, as when all clients are one network, is kept exactly (Johnson and Lindenstrauss 1984).
    """
    targets = cross.shape[1]
    if targets <= TARGETS:
        return cross
    draw = torch.randn(targets, TARGETS, generator=torch.Generator().manual_seed(0), dtype=cross.dtype)
    return cross @ (draw / TARGETS**0.5).to(cross.device)


def select_groups(gram: torch.Tensor, cross: torch.Tensor, count: int, size: int) -> list[int]:
    """Greedy choice of `count` groups of `size` neighbouring columns (heads) that together explain most of the targets.

    Raises `BadOption` when there are fewer groups.
    """
    groups = len(gram) // size
    if count > groups:
        raise BadOption(f"cannot choose {count} heads from a pool of {groups}; lower the number of heads")
    gram, cross = gram.clone(), cross.clone()
    faint = 1e-10 * gram.diagonal().mean().clamp_min(1e-300) * torch.eye(size, dtype=gram.dtype)
    chosen: list[int] = []
    for _ in range(count):
        blocks = torch.stack([gram[g * size : (g + 1) * size, g * size : (g + 1) * size] for g in range(groups)])
        solved = torch.linalg.solve(blocks + faint, cross.unflatten(0, (groups, size)))
        gain = (solved * cross.unflatten(0, (groups, size))).sum((1, 2))
        gain[chosen] = -torch.inf
        best = int(gain.argmax())
        mine = slice(best * size, (best + 1) * size)
        reading = torch.linalg.solve(blocks[best] + faint, gram[mine])
        cross = cross - reading.T @ cross[mine]
        gram = gram - gram[:, mine] @ reading
        chosen.append(best)
    return chosen


def reading_map(gram: torch.Tensor, chosen: torch.Tensor, ridge: float = 1e-4) -> torch.Tensor:
    """`[pool, chosen]`: every unit of the pool as a linear reading of the chosen ones, by ridge regression.

    The ridge pulls towards the reading of each unit from the one chosen unit that explains most of it, so that chosen
    units and their duplicates are read exactly.
    """
    inner, cross = gram[chosen][:, chosen], gram[:, chosen]
    energy = inner.diagonal().clamp_min(1e-300)
    best = (cross.pow(2) / energy).argmax(1)
    best[chosen] = torch.arange(len(chosen))
    rows = torch.arange(len(gram))
    single = torch.zeros_like(cross)
    single[rows, best] = cross[rows, best] / energy[best]
    shrink = ridge * inner.diagonal().mean().clamp_min(1e-12) * torch.eye(len(chosen), dtype=gram.dtype)
    rest = cross - single @ inner
    rest[rest.norm(dim=1) <= SAME * cross.norm(dim=1)] = 0.0
    return single + torch.linalg.solve(inner + shrink, rest.T).T
