"""Loss barriers between two character transformers, by the way in which one is aligned to the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from featalign.bench.pairs import language_pair

if TYPE_CHECKING:
    import pandas as pd

    from featalign.clients import Cohort
    from featalign.fuse import FusionProblem

METHODS = ("vanilla", "ot-acts", "procrustes", "procrustes-wts", "feature-project", "sinkhorn")


@dataclass(frozen=True)
class BarrierResult:
    """Loss along the line between two networks after one was aligned to the other.

    Attributes:
        pair: the corpora.
        curves: frame of method, mixing (weight of the aligned network), loss (nats per token, held out).
        parents: held-out loss of both.
        ensemble: of their averaged probabilities.
        config: what was run.
    """

    pair: str
    curves: pd.DataFrame
    parents: tuple[float, float]
    ensemble: float
    config: dict[str, Any] = field(default_factory=dict)

    def to_frame(self) -> pd.DataFrame:
        """A row per method: `barrier` (largest excess over the line between the parents) and loss half way."""
        import pandas as pd

        rows = []
        for method, curve in self.curves.groupby("method", sort=False):
            line = (1 - curve["mixing"]) * self.parents[1] + curve["mixing"] * self.parents[0]
            middle = curve.iloc[len(curve) // 2]
            rows.append(
                {"method": method, "barrier": float((curve["loss"] - line).max()), "midpoint": float(middle["loss"])}
            )
        return pd.DataFrame(rows)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "pair": self.pair,
            "parents": list(self.parents),
            "ensemble": self.ensemble,
            "config": self.config,
            "methods": self.to_frame().to_dict("records"),
            "curves": self.curves.to_dict("records"),
        }


def barrier(
    pair: str = "editions",
    methods: Sequence[str] = METHODS,
    steps: int = 1000,
    points: int = 11,
    probe: int = 64,
    seed: int = 0,
    progress: bool = True,
    **options: int,
) -> BarrierResult:
    """Train (or load) two clients, align one to the other by every method, and follow the loss between them.

    `options` are those of `DecoderConfig`; norms are folded, so that rotations are symmetries of the stream.
    """
    import pandas as pd

    from featalign.clients import Ensemble, evaluate
    from featalign.fuse import METHODS as REGISTERED
    from featalign.fuse import FusionProblem, solve

    cohort = language_pair(pair, steps, probe, seed=seed, progress=progress, **options)
    problem = FusionProblem(cohort)
    if any("dictionaries" in REGISTERED[name].needs for name in methods):
        problem = with_dictionaries(cohort)
    rows = []
    for method in methods:
        for k in range(points):
            weight = k / (points - 1)
            fused = solve(problem.mixed((weight, 1 - weight)), method, repair=False).module
            loss = evaluate(fused, cohort.evaluation, cohort.task)["loss"]
            rows.append({"method": method, "mixing": weight, "loss": loss})
    losses = [evaluate(module, cohort.evaluation, cohort.task)["loss"] for module in cohort.modules]
    both = evaluate(Ensemble(cohort.modules, task=cohort.task), cohort.evaluation, cohort.task)["loss"]
    found = {"steps": steps, "probe": probe, "seed": seed, **options}
    return BarrierResult(pair, pd.DataFrame(rows), (losses[0], losses[1]), both, found)


def with_dictionaries(cohort: Cohort) -> FusionProblem:
    """The problem with a TopK dictionary of every readable space of both clients, on the probe."""
    from featalign.dictionaries import train_many
    from featalign.fuse import FusionProblem
    from featalign.spaces import collect

    found = {}
    for space in cohort.graphs[0].hidden:
        if space.pre is None:
            continue
        sites = [graph[space.name].after for graph in cohort.graphs]
        acts = [collect(module, cohort.probe, [site])[site] for module, site in zip(cohort.modules, sites)]
        trained = train_many(acts, "topk", (0,), [{"client": name, "space": space.name} for name in cohort.names])
        found[space.name] = tuple(row[0] for row in trained)
    return FusionProblem(cohort, dictionaries=found)
