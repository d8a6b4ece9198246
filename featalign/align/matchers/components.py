"""Linear spaces read in components: canonical directions and principal axes, the bases without superposition."""

from __future__ import annotations

import torch

from featalign.align.linear import correlation
from featalign.align.maps import SpaceMap
from featalign.align.matchers.registry import matcher
from featalign.align.pair import Pair
from featalign.dictionaries import bases
from featalign.spaces.graph import Symmetry
from featalign.transport import solve

RIDGE = 1e-6  # relative to the mean variance


@matcher("cca", spaces="rotations", needs=("rotations",), default=False)
def cca(pair: Pair) -> SpaceMap:
    """Canonical directions of the two codes identified with each other, however weakly they correlate (CCA merge).

    Source: Horoi et al. 2024, "Harmony in Diversity: Merging Neural Networks with Canonical Correlation Analysis".
    """
    posts_a, posts_b = _posts(pair)
    source, target = bases.cca(posts_a, posts_b, ridge=RIDGE)
    out, into = target.atoms.T @ source.encoder.T, source.atoms.T @ target.encoder.T
    return SpaceMap(out.double(), into.double(), Symmetry.LINEAR)


@matcher("pca", spaces="rotations", needs=("rotations",), default=False)
def pca(pair: Pair) -> SpaceMap:
    """Principal axes matched one to one by |correlation|, signs included: a dictionary without superposition."""
    posts_a, posts_b = _posts(pair)
    source, target = bases.pca(posts_a), bases.pca(posts_b)
    similarity = correlation(source.encode(posts_a), target.encode(posts_b)).double()
    plan = torch.from_numpy(solve(1 - similarity.abs(), method="exact").dense())
    signed = (plan / plan.amax()) * similarity.sign()
    out = target.atoms.double().T @ signed.T @ source.encoder.double().T
    return SpaceMap(out, out.T.contiguous(), Symmetry.ORTHOGONAL)


def _posts(pair: Pair) -> tuple[torch.Tensor, torch.Tensor]:
    """Post-activations of source and target on the refit inputs."""
    source, target = zip(*pair.posts())
    return torch.cat(source), torch.cat(target)
