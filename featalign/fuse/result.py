"""What fusing gives back: the fused network, its alignments, what the refit and the repair did; saved and loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from featalign import storage
from featalign.align.feature import FeatureMatch
from featalign.align.maps import Alignment, SpaceMap
from featalign.clients.weights import Layout, read_module, read_state, write_module
from featalign.errors import CorruptFile
from featalign.fuse.refit import LayerFit
from featalign.fuse.repair import LayerRepair
from featalign.spaces.graph import Symmetry

if TYPE_CHECKING:
    import pandas as pd

FACTS, ALIGNMENTS, KIND, SCHEMA = "fusion.json", "alignments.safetensors", "fusion", 1


@dataclass(frozen=True)
class FusionResult:
    """A fused network with what explains it.

    Attributes:
        method, options: the registered name and the options it ran with.
        refitted: whether the closed-form refit followed.
        module: the fused network, of the reference's architecture.
        alignments: one per client.
        fits: per refitted layer, the target's explained variance before and after.
        matches: feature matches by (client, space), for methods that made them; they are not saved.
        notes: whatever else the method recorded.
        seconds: wall-clock of matching, fusing, repairing and refitting.
        repaired, repairs: whether statistics were repaired, and what was found per layer.
        clients, reference, mixing: names, the index of the one whose basis the others were moved into, and weights.
        scores: by client name, and `fused`: every metric of the task, where there was something to evaluate on.
        layout: how the clients came in, and the network is saved.
    """

    method: str
    options: Mapping[str, Any]
    refitted: bool
    module: nn.Module
    alignments: tuple[Alignment, ...] = field(repr=False)
    fits: tuple[LayerFit, ...] = field(repr=False)
    matches: Mapping[tuple[int, str], FeatureMatch] = field(repr=False)
    notes: Mapping[str, Any]
    seconds: float
    repaired: bool = False
    repairs: tuple[LayerRepair, ...] = ()
    clients: tuple[str, ...] = ()
    reference: int = -1
    mixing: tuple[float, ...] = ()
    scores: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    layout: Layout = field(default_factory=Layout, repr=False)

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
            "clients": list(self.clients),
            "reference": self.reference,
            "mixing": list(self.mixing),
            "refitted": self.refitted,
            "seconds": self.seconds,
            "repaired": self.repaired,
            "scores": {name: dict(found) for name, found in self.scores.items()},
            "layers": {fit.layer: fit.to_dict() for fit in self.fits},
            "repairs": {found.layer: found.to_dict() for found in self.repairs},
            "notes": dict(self.notes),
        }

    def to_frame(self) -> pd.DataFrame:
        """A row per refitted layer: its target's variance explained before and after."""
        import pandas as pd

        rows = [(fit.layer, fit.explained_before, fit.explained_after) for fit in self.fits]
        return pd.DataFrame(rows, columns=["layer", "explained_before", "explained_after"])

    def _repr_html_(self) -> str:
        from html import escape

        table = "".join(
            f"<tr><td>{escape(name)}</td>" + "".join(f"<td>{m} {v:.4g}</td>" for m, v in found.items()) + "</tr>"
            for name, found in self.scores.items()
        )
        return f"<p>{escape(self.name)} of {escape(', '.join(self.clients))}</p><table>{table}</table>"

    def save(self, folder: Path | str, overwrite: bool = False) -> Path:
        """Write network, alignments and `fusion.json` into a folder that appears when complete; `fa.load` reads it.

        The network is written in the layout that the clients came in (`clients.weights`). Raises `FolderExists` for a
        folder that holds anything (with `overwrite`, anything but a run), `StorageError` where it cannot be written.
        """
        with storage.atomic_folder(folder, overwrite, KIND) as place, storage.writing(folder):
            layout = write_module(self.module, place, self.layout)
            tensors, facts = _packed(self.alignments)
            if tensors:
                storage.save_tensors(place / ALIGNMENTS, tensors)
            content = {
                "schema": SCHEMA,
                "layout": layout,
                "class": type(self.module).__name__,
                "versions": storage.versions("transformers", "transformer-lens"),
                **self.to_dict(),
                "alignments": facts,
            }
            storage.write_json(place / FACTS, content)
        return Path(folder)


@storage.LOADERS.register(KIND)
def load_fusion(folder: Path) -> FusionResult:
    """The result that `FusionResult.save` wrote; raises `CorruptFile` for files of another form.

    Of a module whose class was not saved, `module` holds the weights alone (`clients.weights.StateOnly`).
    """
    facts = storage.read_json(folder / FACTS)
    if not isinstance(facts, dict) or facts.get("schema") != SCHEMA:
        raise CorruptFile(f"'{folder / FACTS}' is no fusion of schema {SCHEMA}; fuse again")
    module, layout = (read_state(folder), Layout()) if facts.get("layout") == "state" else read_module(folder)
    tensors = storage.load_tensors(folder / ALIGNMENTS) if (folder / ALIGNMENTS).exists() else {}
    try:
        return FusionResult(
            facts["method"], facts["options"], facts["refitted"], module, _unpacked(tensors, facts["alignments"]),
            tuple(LayerFit(layer, **found) for layer, found in facts["layers"].items()), {}, facts["notes"],
            facts["seconds"], facts["repaired"],
            tuple(LayerRepair(layer, **{k: _number(v) for k, v in f.items()}) for layer, f in facts["repairs"].items()),
            tuple(facts["clients"]), facts["reference"], tuple(facts["mixing"]), facts["scores"], layout,
        )  # fmt: skip
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise CorruptFile(f"'{folder / FACTS}' is no fusion of schema {SCHEMA} ({error}); fuse again") from error


def _packed(alignments: tuple[Alignment, ...]) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    """Maps as tensors, permutations by their indices, and what else is known of them."""
    tensors: dict[str, torch.Tensor] = {}
    facts = []
    for k, alignment in enumerate(alignments):
        known = {}
        for space, found in alignment.maps.items():
            known[space] = {"symmetry": str(found.symmetry.value), "residual": found.residual}
            ones = (found.out != 0).sum(0)
            if found.out.shape[0] == found.out.shape[1] and torch.equal(found.out, found.into.T):
                whole = bool((ones == 1).all()) and bool(((found.out == 0) | (found.out == 1)).all())
                if whole and bool((found.out.sum(1) == 1).all()):
                    tensors[f"{k}:order:{space}"] = found.out.argmax(1).int()
                    continue
            tensors[f"{k}:out:{space}"], tensors[f"{k}:into:{space}"] = found.out, found.into
            if found.shift is not None:
                tensors[f"{k}:shift:{space}"] = found.shift
        tensors.update({f"{k}:gauge:{space}": turned for space, turned in alignment.gauge.items()})
        facts.append({"maps": known, "gauge": list(alignment.gauge)})
    return tensors, facts


def _unpacked(tensors: Mapping[str, torch.Tensor], facts: list[dict[str, Any]]) -> tuple[Alignment, ...]:
    alignments = []
    for k, known in enumerate(facts):
        maps = {}
        for space, fact in known["maps"].items():
            symmetry, residual = Symmetry(fact["symmetry"]), _number(fact["residual"])
            if (order := tensors.get(f"{k}:order:{space}")) is not None:
                out = torch.eye(len(order), dtype=torch.float64)[order.long()]
                maps[space] = SpaceMap(out, out.T.contiguous(), symmetry, residual)
                continue
            out, into = tensors[f"{k}:out:{space}"], tensors[f"{k}:into:{space}"]
            maps[space] = SpaceMap(out, into, symmetry, residual, tensors.get(f"{k}:shift:{space}"))
        alignments.append(Alignment(maps, {space: tensors[f"{k}:gauge:{space}"] for space in known["gauge"]}))
    return tuple(alignments)


def _number(value: float | None) -> float:
    return float("nan") if value is None else value
