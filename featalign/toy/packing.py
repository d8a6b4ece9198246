"""Placing features in fewer dimensions so that they interfere least."""

from __future__ import annotations

import torch

from featalign.errors import BadOption


def pack(atoms: torch.Tensor, energy: torch.Tensor, width: int, steps: int = 1500, lr: float = 0.05) -> torch.Tensor:
    """Directions `[F, width]` of unit norm for `F` features of given `energy [F]`; zero rows of `atoms [F, m]` are new.

    New features take, in order of energy, the direction of least energy-weighted coherence with all placed so far (the
    last eigenvector of the frame operator, negative side up: readers behind a ReLU do not see negative interference).
    Then all directions are relaxed together on `sum_uv e_u relu(v_u . v_v)^2`. Placed atoms start where they are, so
    that nothing moves unless it must. Raises `BadOption` for a width below that of the atoms.
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
    if len(new) == 0 and width == m:
        return placed
    return _relaxed(placed, share, steps, lr)


def _relaxed(placed: torch.Tensor, share: torch.Tensor, steps: int, lr: float) -> torch.Tensor:
    """Adam on the sphere."""
    free = placed.clone().requires_grad_()
    optimiser = torch.optim.Adam([free], lr=lr)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.02, steps)
    off = 1 - torch.eye(len(placed), dtype=torch.float64)
    for _ in range(steps):
        unit = torch.nn.functional.normalize(free, dim=1)
        loss = (share[:, None] * ((unit @ unit.T) * off).relu() ** 2).sum() / len(placed)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return torch.nn.functional.normalize(free.detach(), dim=1)
