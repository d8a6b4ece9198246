"""Feature-basis matching: the plan between latents of two dictionaries, decoded to a map of the space."""

from __future__ import annotations

from featalign.align.feature import fold, project
from featalign.align.maps import SpaceMap
from featalign.align.matchers.registry import matcher
from featalign.align.pair import Pair


@matcher("feature-project", basis="feature", needs=("dictionaries",))
def feature_project(pair: Pair) -> SpaceMap:
    """Latents matched by partial OT; the plan is projected onto what each space's symmetry allows."""
    return project(pair.match, *pair.bases, pair.target.symmetry)


@matcher("feature-fold", basis="feature", needs=("dictionaries",), refit="none")
def feature_fold(pair: Pair) -> SpaceMap:
    """Naive contrast: a linear map through matched atoms folded into the weights."""
    return fold(pair.match, *pair.bases)
