"""Fusing by name, and what comes back: the fused network, its alignment and its ledger."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from featalign.align.feature import FeatureMatch
from featalign.align.maps import Alignment
from featalign.align.neuron import post_site, pre_site
from featalign.fuse.methods import METHODS, Proposal, require_widths
from featalign.fuse.problem import FusionProblem
from featalign.fuse.refit import LayerFit, map_targets, refit
from featalign.fuse.repair import LayerRepair, is_deep, repair
from featalign.fuse.rule import apply_rule
from featalign.storage import save_tensors


@dataclass(frozen=True)
class FusionResult:
    """A fused network with what explains it.

    Attributes:
        method, refitted: the registered name and whether the closed-form refit followed.
        module: the fused network, of the reference's architecture.
        alignments: one per client.
        fits: per refitted layer, the target's explained variance before and after.
        matches: feature matches by (client, space), for methods that made them.
        notes: whatever else the method recorded.
        seconds: wall-clock of matching, fusing, repairing and refitting.
        repaired, repairs: whether statistics were repaired, and what was found per layer (nothing is listed where
            batch normalisation was estimated again).
    """

    method: str
    refitted: bool
    module: nn.Module
    alignments: tuple[Alignment, ...]
    fits: tuple[LayerFit, ...]
    matches: dict[tuple[int, str], FeatureMatch] = field(repr=False)
    notes: dict[str, Any]
    seconds: float
    repaired: bool = False
    repairs: tuple[LayerRepair, ...] = ()

    @property
    def name(self) -> str:
        """The row of the table: method, with '+repair' when repaired and '+refit' when refitted."""
        return self.method + "+repair" * self.repaired + "+refit" * self.refitted

    def save(self, path: Path | str) -> Path:
        """Write the fused weights as safetensors."""
        return save_tensors(path, self.module.state_dict(), {"method": self.name, "format": "pt"})

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers: seconds, layer fits, notes."""
        return {
            "method": self.method,
            "refitted": self.refitted,
            "seconds": self.seconds,
            "repaired": self.repaired,
            "layers": {fit.layer: fit.to_dict() for fit in self.fits},
            "repairs": {found.layer: found.to_dict() for found in self.repairs},
            "notes": self.notes,
        }


def fuse(
    problem: FusionProblem,
    method: str,
    with_refit: bool = False,
    head: str = "log-mixture",
    ridge: float = 1e-2,
    with_repair: bool | None = None,
) -> FusionResult:
    """Fuse the clients of a problem by a registered method, with or without the closed-form refit.

    `head` names the target of the output layer in the refit ("log-mixture", "mean-logits" or "none"); `ridge` is
    relative to each layer's Gram matrix. Statistic repair is on for networks of ten affine layers or more unless
    `with_repair` says otherwise. Raises `UnknownName` for an unknown method and `SpaceMismatch` when widths
    differ and the method needs them equal.
    """
    entry = METHODS[method]
    require_widths(problem, method)
    began = time.perf_counter()
    proposal = propose(problem, method)
    module = apply_rule(problem, proposal.alignments)
    with_refit = with_refit or entry.needs_refit
    with_repair = is_deep(problem) if with_repair is None else with_repair
    fits: list[LayerFit] = []
    averaged = not all(weight in (0, 1) for weight in problem.mixing)
    repairs = repair(problem, module, proposal.alignments) if with_repair and averaged else []
    if with_refit and averaged:
        targets = proposal.targets or map_targets(proposal.alignments)
        fits = refit(problem, module, targets, proposal.exact_first, ridge, head)
    seconds = time.perf_counter() - began
    return FusionResult(
        method, with_refit, module, proposal.alignments, tuple(fits), proposal.matches, proposal.notes, seconds,
        with_repair, tuple(repairs),
    )  # fmt: skip


def propose(problem: FusionProblem, method: str) -> Proposal:
    """What a method proposes, kept with the captured activations where it does not depend on the mixing weights."""
    entry, kept = METHODS[method], problem.memory.proposals
    if entry.follows_mixing:
        return entry.propose(problem)
    if method not in kept:
        kept[method] = entry.propose(problem)
    return kept[method]


def ledger(problem: FusionProblem, alignments: Sequence[Alignment]) -> dict[str, dict[str, float]]:
    """Per space, what the maps of the first moved client keep and lose, on the refit inputs.

    explained_variance: of the reference's post-activations by the moved client's. commutation_defect:
    `E|relu(O h) - O relu(h)|^2 / E|O relu(h)|^2`. round_trip: `E|R O a - a|^2 / E|a|^2`.
    """
    moving = [k for k in range(len(problem.clients)) if k != problem.reference]
    if not moving:
        return {}
    k = moving[0]
    sums: dict[str, dict[str, float]] = {}
    means: dict[str, Any] = {}
    for _, held, _ in problem.activations():
        for space in problem.graph.hidden:
            space_map = alignments[k].maps[space.name]
            out, into = space_map.out.double(), space_map.into.double()
            pre, post = held[k][pre_site(space)].double(), held[k][post_site(space)].double()
            target = held[problem.reference][post_site(space)].double()
            mean = means.setdefault(space.name, target.mean(0))
            moved_post = post @ out.T
            entry = sums.setdefault(
                space.name, dict.fromkeys(("error", "variance", "defect", "moved", "trip", "own"), 0.0)
            )
            entry["error"] += float((moved_post - target).pow(2).sum())
            entry["variance"] += float((target - mean).pow(2).sum())
            entry["defect"] += float(((pre @ out.T).relu() - moved_post).pow(2).sum())
            entry["moved"] += float(moved_post.pow(2).sum())
            entry["trip"] += float((moved_post @ into.T - post).pow(2).sum())
            entry["own"] += float(post.pow(2).sum())
    return {
        name: {
            "explained_variance": 1 - entry["error"] / max(entry["variance"], 1e-30),
            "commutation_defect": entry["defect"] / max(entry["moved"], 1e-30),
            "round_trip": entry["trip"] / max(entry["own"], 1e-30),
        }
        for name, entry in sums.items()
    }
