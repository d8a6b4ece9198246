"""Loss barriers between two character transformers: a comparison of language models, read along the mixing weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from featalign.bench.pairs import language_pair

if TYPE_CHECKING:
    import pandas as pd

    from featalign.studies.compare.result import CompareResult

METHODS = ("vanilla", "ot-acts", "procrustes", "procrustes-wts", "feature-project", "sinkhorn", "learned", "zip")


def barrier(
    pair: str = "editions",
    methods: Sequence[str] = METHODS,
    steps: int = 1000,
    points: int = 11,
    probe: int = 64,
    descent: int = 0,
    augmented: int = 0,
    method_options: Mapping[str, Mapping[str, Any]] | None = None,
    seed: int = 0,
    progress: bool = True,
    **options: int,
) -> CompareResult:
    """Train (or load) two clients and compare them by every method, along the whole mixing curve.

    The probe is so many unlabelled windows, for the refit spliced to `augmented` where that is not 0; `descent` steps
    of gradient on them follow every refit. `options` are those of `DecoderConfig`; norms are folded, so that rotations
    are symmetries of the stream.
    """
    from featalign.studies.compare.run import compare

    modules, inputs, evaluation = language_pair(pair, steps, probe, seed=seed, progress=progress, **options)
    return compare(
        modules, inputs, evaluation, "next-token", methods, options=method_options, curve=points, steps=descent,
        augment="splice" if augmented else "none", augmented=augmented or len(inputs), evidence=False, seed=seed,
        progress=progress,
    )  # fmt: skip


def curves(result: CompareResult) -> pd.DataFrame:
    """`method` (row of the table), `mixing` and `loss` (nats per token, held out) of every fused network."""
    scores = result.frames["scores"]
    fused = scores[(scores["metric"] == "loss") & scores["stage"].isin(["fused", "refit"])]
    frame = fused[["row", "mixing", "value"]].rename(columns={"row": "method", "value": "loss"})
    return frame.drop_duplicates(["method", "mixing"]).sort_values(["method", "mixing"]).reset_index(drop=True)


def parents(result: CompareResult) -> tuple[float, float]:
    """Losses of the two clients."""
    scores = result.frames["scores"]
    found = scores[(scores["metric"] == "loss") & (scores["stage"] == "client")]["value"].tolist()
    return float(found[0]), float(found[-1])


def barriers(result: CompareResult) -> pd.DataFrame:
    """A row per method: `barrier`, the largest excess over the line between the parents, and the loss half way."""
    import pandas as pd

    ends, rows = parents(result), []
    for method, curve in curves(result).groupby("method", sort=False):
        line = (1 - curve["mixing"]) * ends[1] + curve["mixing"] * ends[0]
        middle = curve.iloc[(curve["mixing"] - 0.5).abs().argmin()]
        rows.append(
            {"method": method, "barrier": float((curve["loss"] - line).max()), "midpoint": float(middle["loss"])}
        )
    return pd.DataFrame(rows, columns=["method", "barrier", "midpoint"]).sort_values("midpoint")
