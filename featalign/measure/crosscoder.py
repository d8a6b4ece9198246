"""How strongly each client holds the latents of a joint dictionary: by decoder norms, and with shrinkage undone."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from featalign.errors import SpaceMismatch


def norm_shares(atoms: Sequence[torch.Tensor]) -> torch.Tensor:
    """`[clients, F]`: each client's share of the decoder norms of every latent; 1 where no other client has it.

    `atoms` are the clients' blocks `[F, n_c]` of one joint dictionary (relative decoder norm, Lindsey et al. 2024).
    Raises `SpaceMismatch` for blocks of different dictionaries.
    """
    if len({len(block) for block in atoms}) > 1:
        raise SpaceMismatch(f"{[len(block) for block in atoms]} latents; pass the blocks of one joint dictionary")
    norms = torch.stack([block.double().norm(dim=1) for block in atoms])
    return norms / norms.sum(0).clamp_min(1e-300)


def latent_strengths(codes: torch.Tensor, activations: torch.Tensor, atoms: torch.Tensor) -> torch.Tensor:
    """`[F]`: how strongly activations `[samples, n]` hold each latent, whatever the training left in its atom.

    Latent scaling (Minder et al. 2025, arXiv:2504.02922) asks by which factor `f_j d_j` of the one client must be
    scaled to explain what all other latents leave of a client. Clients here need share no space, so that the row
    itself is fitted: `v_j = argmin sum |e_j - f_j v|^2`, `e_j = a - a_hat + f_j d_j`. Returned is the norm of `v_j`,
    with what noise alone adds to its square taken off. `activations` are centred by the decoder's offset.

    Args:
        codes: `f [samples, F]` of the joint dictionary; atoms: the client's block `d [F, n]`.
    """
    f, d = codes.double(), atoms.double()
    rest = activations.double() - f @ d
    energy = f.pow(2).sum(0)
    row = d + (f.T @ rest) / energy.clamp_min(1e-300)[:, None]
    noise = (f.pow(2).T @ rest.pow(2).sum(1)) / energy.clamp_min(1e-300).pow(2)
    found = (row.pow(2).sum(1) - noise).clamp_min(0).sqrt()
    return torch.where(energy > 0, found, torch.full_like(found, float("nan")))
