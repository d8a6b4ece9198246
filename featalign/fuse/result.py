"""What fusing gives back: the fused network, its alignments, what the refit and the repair did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from featalign.align.feature import FeatureMatch
from featalign.align.maps import Alignment
from featalign.fuse.refit import LayerFit
from featalign.fuse.repair import LayerRepair


@dataclass(frozen=True)
class FusionResult:
    """A fused network with what explains it.

    Attributes:
        method, options: the registered name and the options it ran with.
        refitted: whether the closed-form refit followed.
        module: the fused network, of the reference's architecture.
        alignments: one per client.
        fits: per refitted layer, the target's explained variance before and after.
        matches: feature matches by (client, space), for methods that made them.
        notes: whatever else the method recorded.
        seconds: wall-clock of matching, fusing, repairing and refitting.
        repaired, repairs: whether statistics were repaired, and what was found per layer.
    """

    method: str
    options: Mapping[str, Any]
    refitted: bool
    module: nn.Module
    alignments: tuple[Alignment, ...]
    fits: tuple[LayerFit, ...]
    matches: Mapping[tuple[int, str], FeatureMatch] = field(repr=False)
    notes: Mapping[str, Any]
    seconds: float
    repaired: bool = False
    repairs: tuple[LayerRepair, ...] = ()

    @property
    def name(self) -> str:
        """The row of the table: method with its options, '+repair' when repaired and '+refit' when refitted."""
        shown = ", ".join(f"{key}={value}" for key, value in self.options.items())
        return self.method + (f"({shown})" if shown else "") + "+repair" * self.repaired + "+refit" * self.refitted

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers: seconds, layer fits, notes."""
        return {
            "method": self.method,
            "options": dict(self.options),
            "refitted": self.refitted,
            "seconds": self.seconds,
            "repaired": self.repaired,
            "layers": {fit.layer: fit.to_dict() for fit in self.fits},
            "repairs": {found.layer: found.to_dict() for found in self.repairs},
            "notes": dict(self.notes),
        }
