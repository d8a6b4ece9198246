"""CCA-Merge: every space through canonical directions, read from streamed moments."""

from __future__ import annotations

import torch

from featalign.align.maps import SpaceMap
from featalign.align.matchers.registry import matcher
from featalign.align.pair import Pair
from featalign.errors import BadOption, SpaceMismatch
from featalign.spaces.graph import Symmetry


@matcher("cca-merge", needs=("equal-widths",), default=False, exact=False)
def cca_merge(pair: Pair, *, gamma: float = 1e-4) -> SpaceMap:
    """Invertible maps of every space, ReLU layers too, between canonical directions of the two clients.

    `O = S_bb^(1/2) V U^T S_aa^(-1/2)` with `S_aa^(-1/2) S_ab S_bb^(-1/2) = U s V^T`, and `R` its inverse: directions
    are identified however weakly they correlate. `gamma` is added to both covariances, relative to their mean variance.
    Where units vary in fewer directions than they are many, the rest of the map is undetermined. `cca` is the same rule
    for linear spaces alone. Source: Horoi et al. 2024, "Harmony in diversity: merging neural networks with canonical
    correlation analysis", section 4.
    """
    if gamma <= 0:
        raise BadOption(f"gamma = {gamma} of 'cca-merge'; give a number above 0, relative to the mean variance")
    moments = pair.moments
    if pair.source.size != pair.target.size:
        raise SpaceMismatch(
            f"space '{pair.name}' has {pair.source.size} and {pair.target.size} units; CCA-Merge wants equal widths"
        )
    root_a, inverse_a = _roots(pair.within(0).covariance_ab, gamma)
    root_b, inverse_b = _roots(pair.within(1).covariance_ab, gamma)
    whitened = inverse_b @ moments.covariance_ab.T @ inverse_a
    # directions in which neither varies stay where they lie
    u, _, vh = torch.linalg.svd(whitened + 1e-9 * torch.eye(len(whitened), dtype=whitened.dtype))
    return SpaceMap(root_b @ u @ vh @ inverse_a, root_a @ (u @ vh).T @ inverse_b, Symmetry.LINEAR)


def _roots(covariance: torch.Tensor, gamma: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Symmetric square root of a covariance with `gamma` on its diagonal, and the inverse of the root."""
    values, vectors = torch.linalg.eigh(covariance)
    root = (values.clamp_min(0) + gamma * values.mean().clamp_min(1e-12)).sqrt()
    return (vectors * root) @ vectors.T, (vectors / root) @ vectors.T
