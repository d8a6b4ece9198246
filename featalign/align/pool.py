"""Unit pools: a fused layer may choose its units among the candidates of every client.

Neurons (and foldable transcoder latents) of all clients are rectified linear functions of the layer below, so any of
them can serve as a unit of the fused layer. The choice is greedy column-subset selection against what the next layers
read; the in-map is the least-squares reading of each client's units from the chosen ones.
"""

from __future__ import annotations

import torch

from featalign.errors import BadOption

SAME = 1e-5  # relative rest up to which a unit is the duplicate of a chosen one


def select_columns(gram: torch.Tensor, cross: torch.Tensor, count: int) -> list[int]:
    """Greedy column-subset selection: `count` units whose span explains most of the targets.

    At each step the unit that lowers the squared error of regressing the targets on the chosen units most is taken
    (orthogonal matching pursuit with several targets), and everything is deflated by it. Only Gram matrices are needed.
    When the chosen units explain everything, the rest are those least like any chosen one.

    Raises `BadOption` when the pool is smaller than `count`.
    """
    if count > len(gram):
        raise BadOption(f"cannot choose {count} units from a pool of {len(gram)}; lower the fused width")
    residual, cross = gram.diagonal().clone(), cross.clone()
    initial = residual.clone().clamp_min(1e-12)
    free = torch.ones(len(gram), dtype=torch.bool)
    factor = gram.new_zeros(len(gram), count)  # pivoted Cholesky: the deflated Gram matrix is never formed
    chosen: list[int] = []
    for step in range(count):
        usable = free & (residual > 1e-12 * initial)
        if usable.any():
            gain = cross.pow(2).sum(1) / residual.clamp_min(1e-12)
            best = int(torch.where(usable, gain, torch.full_like(gain, -1.0)).argmax())
            column = gram[:, best] - factor[:, :step] @ factor[best, :step]
            factor[:, step] = column / residual[best].sqrt()
            cross -= torch.outer(factor[:, step], cross[best] / residual[best].sqrt())
            residual -= factor[:, step].square()
        else:
            index = torch.as_tensor(chosen, dtype=torch.long)
            alike = gram[:, index].pow(2) / torch.outer(initial, initial[index])
            apart = 1 - (alike.amax(1) if chosen else torch.zeros_like(initial))
            best = int(torch.where(free, apart, torch.full_like(apart, -1.0)).argmax())
        free[best] = False
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
