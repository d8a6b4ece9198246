"""Curves with a prediction beside them: what a linear map explains over m/n, and fused loss over fused width."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch

from featalign.align.regime import regime
from featalign.registry import Registry
from featalign.studies.toy.config import ToySettings
from featalign.studies.toy.run import compare
from featalign.toy.features import Features
from featalign.toy.models import ToyConfig
from featalign.toy.training import Schedule, train

if TYPE_CHECKING:
    import plotly.graph_objects as go

WORDS_METHODS = ("vanilla", "ot-acts", "procrustes", "procrustes-wts", "feature-reencode")


@dataclass(frozen=True)
class Curve:
    """A measured curve.

    Attributes:
        name: as registered.
        frame: a row per point.
        facts: plain values beside it.
    """

    name: str
    frame: pd.DataFrame
    facts: Mapping[str, Any]

    def to_frame(self) -> pd.DataFrame:
        """The points."""
        return self.frame

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"curve": self.name, **self.facts, "rows": self.frame.to_dict(orient="records")}

    @property
    def figure(self) -> go.Figure:
        """The curve drawn."""
        from featalign.plots import toy

        return toy.CURVES[self.name](self.frame, **self.facts)

    def __repr__(self) -> str:
        return self.frame.to_string(index=False, float_format="{:.4f}".format)

    def _repr_html_(self) -> str:
        return self.frame.to_html(index=False, float_format="{:.4f}".format)


CURVES: Registry[Callable[[], Curve]] = Registry("curve")


@CURVES.register("explained")
def explained_curve(
    n: int = 32, widths: Sequence[int] = (2, 4, 8, 12, 16, 24, 32), density: float = 0.04, pairs: int = 4
) -> Curve:
    """Share of one model's code that the best linear map of another's explains, held out, at each width.

    Models of a pair see different batches; `shared` pairs start from equal weights. The prediction for independent ones
    is `m / n`, the overlap of two random m-dimensional subspaces of the n-dimensional feature space. A row per pair.
    """
    law = Features.uniform(n, density)
    probe = law.sample(4096, torch.Generator().manual_seed(5))
    rows = []
    for m in widths:
        config, schedule = ToyConfig(n, m), Schedule(2000, 256, 5e-3)
        first = train(config, law, range(pairs), schedule, data_seed=1).hidden(probe)
        same = train(config, law, range(pairs), schedule, data_seed=2).hidden(probe)
        for i in range(pairs):
            for start, other in (("independent", same[(i + 1) % pairs]), ("shared", same[i])):
                rows.append((m, m / n, start, i, regime(first[i], other).linear))
    return Curve("explained", pd.DataFrame(rows, columns=["m", "prediction", "start", "pair", "value"]), {"n": n})


@CURVES.register("capacity")
def capacity_curve(settings: ToySettings | None = None, widths: Sequence[int] = (8, 10, 12, 16, 20, 24)) -> Curve:
    """Loss of the union of features over the fused width, joint training at that width beside it.

    The default is 16 + 16 features with 8 shared, in 8 units; `clients` is the mean loss of the clients.
    """
    base = replace(settings or ToySettings(shared=8, seeds=1), methods=("feature-union",))
    results = [compare(replace(base, width=width), progress=False) for width in widths]
    rows = [(width, each.loss("feature-union"), each.joint) for width, each in zip(widths, results)]
    frame = pd.DataFrame(rows, columns=["width", "union", "joint"])
    return Curve("capacity", frame.assign(ratio=frame["union"] / frame["joint"]), {"clients": results[0].single})


@CURVES.register("words")
def words_curve(
    widths: Sequence[int] = (16, 32, 64, 96, 128), seeds: int = 1, texts: Path | str | None = None
) -> Curve:
    """Autoencoders of word presence fused at each width: where rotations catch up with features, and the regime."""
    rows = []
    for m in widths:
        found = compare(data="words", m=m, seeds=seeds, methods=WORDS_METHODS, texts=texts, progress=False)
        losses = {name: found.loss(name) for name in WORDS_METHODS} | {"one client": found.single}
        rows += [(m, name, loss, loss / found.single, found.verdict["name"]) for name, loss in losses.items()]
    return Curve("words", pd.DataFrame(rows, columns=["m", "method", "loss", "times client", "regime"]), {})
