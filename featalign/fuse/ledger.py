"""The ledger: what an alignment's maps keep and lose in every space."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from featalign.align.maps import Alignment
from featalign.fuse.problem import FusionProblem
from featalign.spaces import apply_nonlinearity


def ledger(problem: FusionProblem, alignments: Sequence[Alignment]) -> dict[str, dict[str, float | None]]:
    """Per space, what the maps of the first moved client keep and lose, on the refit inputs.

    explained_variance: of the reference's post-activations by the moved client's. commutation_defect:
    `E|s(O h) - O s(h)|^2 / E|O s(h)|^2` with the space's own nonlinearity `s`, None where that is not elementwise.
    round_trip: `E|R O a - a|^2 / E|a|^2`. Spaces that are seen at no module are left out.
    """
    moving = [k for k in range(len(problem.cohort)) if k != problem.reference]
    if not moving:
        return {}
    k = moving[0]
    sums: dict[str, dict[str, float]] = {}
    means: dict[str, Any] = {}
    spaces = [space for space in problem.graph.hidden if space.pre is not None]
    for _, held, _ in problem.activations:
        for space in spaces:
            own, space_map = problem.graphs[k][space.name], alignments[k].maps[space.name]
            out, into = space_map.out.double(), space_map.into.double()
            pre, post = held[k][own.before].double(), held[k][own.after].double()
            target = held[problem.reference][space.after].double()
            mean = means.setdefault(space.name, target.mean(0))
            moved_post = post @ out.T
            names = ("error", "variance", "defect", "moved", "trip", "own")
            entry = sums.setdefault(space.name, dict.fromkeys(names, 0.0))
            entry["error"] += float((moved_post - target).pow(2).sum())
            entry["variance"] += float((target - mean).pow(2).sum())
            if space.nonlinearity is not None:
                entry["defect"] += float((apply_nonlinearity(space, pre @ out.T) - moved_post).pow(2).sum())
            entry["moved"] += float(moved_post.pow(2).sum())
            entry["trip"] += float((moved_post @ into.T - post).pow(2).sum())
            entry["own"] += float(post.pow(2).sum())
    elementwise = {space.name for space in spaces if space.nonlinearity is not None}
    return {
        name: {
            "explained_variance": 1 - entry["error"] / max(entry["variance"], 1e-30),
            "commutation_defect": entry["defect"] / max(entry["moved"], 1e-30) if name in elementwise else None,
            "round_trip": entry["trip"] / max(entry["own"], 1e-30),
        }
        for name, entry in sums.items()
    }
