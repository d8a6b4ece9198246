"""Unit pools: a fused layer may choose its units among the candidates of every client.

Neurons (and foldable transcoder latents) of all clients are rectified linear functions of the layer below, so any of
them can serve as a unit of the fused layer. The choice is greedy column-subset selection against what the next layers
read; the in-map is the least-squares reading of each client's units from the chosen ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from featalign.errors import BadOption

TARGETS = 1024  # beyond these, targets of a choice are projected at random
SAME = 1e-5  # relative rest up to which a unit is the duplicate of a chosen one
AHEAD = 16  # columns made in one product, of the units that are likely to be chosen next


class Gram:
    """Second moments `[pool, pool]` of the units of a pool, added up batch by batch.

    Of fewer rows than units the rows themselves stand for them: columns are made of those when they are asked for, and
    a choice asks for few.
    """

    def __init__(self) -> None:
        self._rows: list[torch.Tensor] = []
        self._whole: torch.Tensor | None = None

    def add(self, units: torch.Tensor) -> None:
        """Rows `[samples, pool]`."""
        if self._whole is not None:
            self._whole += units.T @ units
            return
        self._rows.append(units)
        if sum(map(len, self._rows)) >= units.shape[1]:
            self._whole, self._rows = self.whole(), []

    def columns(self, index: torch.Tensor) -> torch.Tensor:
        """`[pool, len(index)]`: second moments of all units with some."""
        if self._whole is not None:
            return self._whole[:, index]
        rows = self._joined()
        return (rows[:, index].T @ rows).T

    def diagonal(self) -> torch.Tensor:
        """`[pool]`: sum of the squares of every unit."""
        return self._joined().square().sum(0) if self._whole is None else self._whole.diagonal().clone()

    def whole(self) -> torch.Tensor:
        """`[pool, pool]`: all of them."""
        if self._whole is not None:
            return self._whole
        rows = self._joined()
        return rows.T @ rows

    def _joined(self) -> torch.Tensor:
        if len(self._rows) > 1:
            self._rows = [torch.cat(self._rows)]
        return self._rows[0]


class Cross:
    """Second moments `[pool, targets]` of a pool's units with what is wanted of them, added up batch by batch.

    Many clients have many targets, most of them alike: beyond `TARGETS` a random projection keeps their inner products,
    unless they are to be `exact`. Errors of the gains are a few per cent; a space of fewer dimensions, as when all
    clients are one network, is kept exactly (Johnson and Lindenstrauss 1984).
    """

    def __init__(self, exact: bool = False):
        self.exact = exact
        self.moments: Any = 0
        self._projection: torch.Tensor | None = None

    def add(self, units: torch.Tensor, wanted: torch.Tensor) -> None:
        """Rows `[samples, pool]` and `[samples, targets]`."""
        targets = wanted.shape[1]
        if targets > TARGETS and not self.exact:
            if self._projection is None:
                draw = torch.randn(targets, TARGETS, generator=torch.Generator().manual_seed(0), dtype=wanted.dtype)
                self._projection = (draw / TARGETS**0.5).to(wanted.device)
            wanted = wanted @ self._projection
        self.moments = self.moments + units.T @ wanted


def select_columns(
    grams: Sequence[Gram], crosses: Sequence[torch.Tensor], count: int, among: torch.Tensor | None = None
) -> list[int]:
    """Greedy column-subset selection: `count` units whose span explains most of the targets.

    At each step the unit that lowers the squared error of regressing the targets on the chosen units most is taken
    (orthogonal matching pursuit with several targets), and everything is deflated by it. Only second moments are
    needed: of the units, and with the targets `[pool, targets]`. Several of both stand for several readers of the same
    units: their gains are summed. When the chosen units explain everything, the rest are those least like any chosen
    one. `among` are the units that may be chosen; all unless given.

    Raises `BadOption` when these are fewer than `count`.
    """
    readers = [_Reader(gram, cross, count) for gram, cross in zip(grams, crosses, strict=True)]
    initial = readers[0].initial
    free = torch.ones(len(initial), dtype=torch.bool)
    if among is not None:
        free = torch.zeros_like(free).index_fill(0, among, True)
    if count > free.sum():
        raise BadOption(f"cannot choose {count} units from a pool of {int(free.sum())}; lower the fused width")
    chosen: list[int] = []
    alike, compared = torch.zeros_like(initial), 0
    for _ in range(count):
        usable = free & torch.stack([reader.fresh() for reader in readers]).any(0)
        if usable.any():
            gain = torch.stack([reader.gains() for reader in readers]).sum(0)
            gain = torch.where(usable, gain, torch.full_like(gain, -1.0))
            best = int(gain.argmax())
            for reader in readers:
                reader.take(best, gain)
        else:
            if index := chosen[compared:]:
                moments = grams[0].columns(torch.as_tensor(index)).square()
                alike = torch.maximum(alike, (moments / torch.outer(initial, initial[index])).amax(1))
                compared = len(chosen)
            best = int(torch.where(free, 1 - alike, torch.full_like(alike, -1.0)).argmax())
        free[best] = False
        chosen.append(best)
    return chosen


class _Reader:
    """What one map's view of the units leaves unexplained while units are chosen.

    Neither second moments nor cross moments are deflated: pivoted Cholesky columns `factor`, what each chosen unit
    explained of the targets (`explained`) and the product of the cross moments with that (`shared`) stand for it. A
    step needs only the chosen unit's columns of the second moments and of the cross moments' own products; those of
    the likeliest next units are made along with it, which costs little more than one alone.
    """

    def __init__(self, gram: Gram, cross: torch.Tensor, count: int):
        self.gram, self.cross = gram, cross
        self.residual = gram.diagonal()
        self.initial = self.residual.clamp_min(1e-12)
        self.energy = cross.square().sum(1)
        self.negligible = 1e-12 * self.energy
        self.factor, self.shared = (cross.new_zeros(count, len(cross)) for _ in range(2))
        self.explained = cross.new_zeros(count, cross.shape[1])
        self.taken = 0
        self.ready: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def fresh(self) -> torch.Tensor:
        """Units that the chosen ones do not explain yet."""
        return self.residual > 1e-12 * self.initial

    def gains(self) -> torch.Tensor:
        """By how much each unit would lower the squared error of the targets."""
        energy = torch.where(self.energy > self.negligible, self.energy, torch.zeros_like(self.energy))
        return torch.where(self.fresh(), energy / self.residual.clamp_min(1e-12), torch.zeros_like(energy))

    def take(self, best: int, gain: torch.Tensor) -> None:
        """Deflate by a chosen unit, unless it is explained already; the next ones are likely those of a high `gain`."""
        if not self.fresh()[best]:
            return
        if best not in self.ready:
            self._prepare(best, gain)
        moments, products = self.ready.pop(best)
        k = self.taken
        along_factor, root = self.factor[:k, best], self.residual[best].sqrt()
        row = (self.cross[best] - along_factor @ self.explained[:k]) / root
        known = torch.stack([along_factor, self.explained[:k] @ row]) @ self.factor[:k]
        column = (moments - known[0]) / root
        shared = (products - along_factor @ self.shared[:k]) / root
        self.energy += column * (column * row.square().sum() - 2 * (shared - known[1]))
        self.residual -= column.square()
        self.factor[k], self.shared[k], self.explained[k] = column, shared, row
        self.taken += 1

    def _prepare(self, best: int, gain: torch.Tensor) -> None:
        """Columns of a unit and of the likeliest next ones."""
        likely = gain.topk(min(AHEAD, len(gain))).indices.tolist()
        units = [best, *(unit for unit in likely if unit != best and unit not in self.ready and gain[unit] >= 0)]
        index = torch.as_tensor(units[:AHEAD])
        moments, products = self.gram.columns(index), self.cross @ self.cross[index].T
        self.ready.update(zip(units, zip(moments.T.contiguous(), products.T.contiguous())))


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


def reading_map(cross: torch.Tensor, chosen: torch.Tensor, ridge: float = 1e-4) -> torch.Tensor:
    """`[pool, chosen]`: every unit of the pool as a linear reading of the chosen ones, by ridge regression.

    `cross` are the second moments `[pool, chosen]` of all units with the chosen ones.

    The ridge pulls towards the reading of each unit from the one chosen unit that explains most of it, so that chosen
    units and their duplicates are read exactly.
    """
    inner = cross[chosen]
    energy = inner.diagonal().clamp_min(1e-300)
    best = (cross.pow(2) / energy).argmax(1)
    best[chosen] = torch.arange(len(chosen))
    rows = torch.arange(len(cross))
    single = torch.zeros_like(cross)
    single[rows, best] = cross[rows, best] / energy[best]
    shrink = ridge * inner.diagonal().mean().clamp_min(1e-12) * torch.eye(len(chosen), dtype=cross.dtype)
    rest = cross - single @ inner
    rest[rest.norm(dim=1) <= SAME * cross.norm(dim=1)] = 0.0
    return single + torch.linalg.solve(inner + shrink, rest.T).T
