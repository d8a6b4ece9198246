"""Unit pools: a fused layer may choose its units among the candidates of every client.

Neurons (and foldable transcoder latents) of all clients are rectified linear functions of the layer below, so any of
them can serve as a unit of the fused layer. The choice is greedy column-subset selection against what the next layers
read; the in-map is the least-squares reading of each client's units from the chosen ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from featalign.errors import BadOption

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
    crosses = [each.clone() for each in ([cross] if isinstance(cross, torch.Tensor) else cross)]
    size = len(grams[0])
    if count > size:
        raise BadOption(f"cannot choose {count} units from a pool of {size}; lower the fused width")
    residuals = [each.diagonal().clone() for each in grams]
    initials = [each.clone().clamp_min(1e-12) for each in residuals]
    free = torch.ones(size, dtype=torch.bool)
    factors = [each.new_zeros(size, count) for each in grams]  # pivoted Cholesky: no Gram matrix is deflated
    chosen: list[int] = []
    for step in range(count):
        fresh = [residual > 1e-12 * initial for residual, initial in zip(residuals, initials)]
        usable = free & torch.stack(fresh).any(0)
        if usable.any():
            gains = [
                torch.where(new, each.pow(2).sum(1) / residual.clamp_min(1e-12), torch.zeros_like(residual))
                for new, each, residual in zip(fresh, crosses, residuals)
            ]
            gain = torch.stack(gains).sum(0)
            best = int(torch.where(usable, gain, torch.full_like(gain, -1.0)).argmax())
            for new, each, residual, factor, moments in zip(fresh, crosses, residuals, factors, grams):
                if not new[best]:
                    continue
                column = moments[:, best] - factor[:, :step] @ factor[best, :step]
                factor[:, step] = column / residual[best].sqrt()
                each -= torch.outer(factor[:, step], each[best] / residual[best].sqrt())
                residual -= factor[:, step].square()
        else:
            index = torch.as_tensor(chosen, dtype=torch.long)
            alike = grams[0][:, index].pow(2) / torch.outer(initials[0], initials[0][index])
            apart = 1 - (alike.amax(1) if chosen else torch.zeros_like(initials[0]))
            best = int(torch.where(free, apart, torch.full_like(apart, -1.0)).argmax())
        free[best] = False
        chosen.append(best)
    return chosen


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
