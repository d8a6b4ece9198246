"""Linear spaces read in components: canonical directions and principal axes, the bases without superposition."""

from __future__ import annotations

import torch

from featalign.align.maps import SpaceMap
from featalign.align.matchers.registry import matcher
from featalign.align.pair import Pair
from featalign.dictionaries import bases
from featalign.measure import correlation
from featalign.spaces.graph import Symmetry
from featalign.transport import solve

RIDGE = 1e-6  # relative to the mean variance
FAINT = 1e-5  # spread of an axis relative to the widest, in float32


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
    codes_a, codes_b = source.encode(posts_a), target.encode(posts_b)
    similarity = correlation(codes_a, codes_b).double()
    silent = _silent(codes_a)[:, None] & _silent(codes_b)  # nothing varies along them: as near as they lie
    similarity = torch.where(silent, (source.atoms @ target.atoms.T).double(), similarity)
    plan = torch.from_numpy(solve(1 - similarity.abs(), method="exact").dense())
    signed = (plan / plan.amax()) * torch.where(similarity < 0, -1.0, 1.0)
    out = target.atoms.double().T @ signed.T @ source.encoder.double().T
    return SpaceMap(out, out.T.contiguous(), Symmetry.ORTHOGONAL)


def _silent(codes: torch.Tensor) -> torch.Tensor:
    """Axes along which the samples do not vary, `[n]`."""
    spread = codes.double().std(0)
    return spread <= FAINT * spread.amax()


def _posts(pair: Pair) -> tuple[torch.Tensor, torch.Tensor]:
    """Post-activations of source and target on the refit inputs."""
    source, target = zip(*pair.posts())
    return torch.cat(source), torch.cat(target)
