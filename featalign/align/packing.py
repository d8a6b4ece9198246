"""Placing features in fewer dimensions so that they interfere least."""

from __future__ import annotations

import torch

from featalign.errors import BadOption


def pack(
    atoms: torch.Tensor, energy: torch.Tensor, width: int, hold: bool = False, steps: int = 1500, lr: float = 0.05
) -> torch.Tensor:
    """Directions `[F, width]` of unit norm for `F` features of given `energy [F]`; zero rows of `atoms [F, m]` are new.

    New features take, in order of energy, the direction of least energy-weighted coherence with all placed so far (the
    last eigenvector of the frame operator, negative side up: readers behind a ReLU do not see negative interference).
    Then directions are relaxed on `sum_uv e_u relu(v_u . v_v)^2`: all of them together, which makes most room, or with
    `hold` the new ones alone, which keeps what training has laid out. Raises `BadOption` for a width below that of the
    atoms.
    """
    count, m = atoms.shape
    if width < m:
        raise BadOption(f"a fused width of {width} is below the clients' {m}; pass at least {m}")
    share = energy.double() / energy.double().mean().clamp_min(1e-300)
    placed = torch.zeros(count, width, dtype=torch.float64)
    placed[:, :m] = torch.nn.functional.normalize(atoms.double(), dim=1)
    new = torch.nonzero(atoms.norm(dim=1) < 1e-9).flatten()
    for feature in new[share[new].argsort(descending=True)].tolist():
        frame = placed.T @ (share[:, None] * placed)
        direction = torch.linalg.eigh(frame).eigenvectors[:, 0]
        positive, negative = ((share * (sign * placed @ direction).relu() ** 2).sum() for sign in (1, -1))
        placed[feature] = direction if positive <= negative else -direction
    if len(new) == 0 and (hold or width == m):
        return placed
    free = (atoms.norm(dim=1) < 1e-9) if hold else torch.ones(count, dtype=torch.bool)
    return _relaxed(placed, share, free, steps, lr)


def _relaxed(placed: torch.Tensor, share: torch.Tensor, free: torch.Tensor, steps: int, lr: float) -> torch.Tensor:
    """Adam along the sphere for the `free` directions, the rate falling to zero."""
    unit, first = placed.clone(), torch.zeros_like(placed)
    second = torch.zeros_like(placed)
    for step in range(steps):
        overlap = (unit @ unit.T).fill_diagonal_(0.0).clamp_min_(0.0) * share[:, None]
        gradient = (overlap + overlap.T) @ unit * free[:, None]
        gradient -= unit * (gradient * unit).sum(1, keepdim=True)
        first.lerp_(gradient, 0.1)
        second.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
        scale = (second / (1 - 0.999 ** (step + 1))).sqrt_().add_(1e-8)
        unit = unit - lr * (1 - step / steps) / (1 - 0.9 ** (step + 1)) * first / scale
        unit = torch.nn.functional.normalize(unit, dim=1)
    return unit
