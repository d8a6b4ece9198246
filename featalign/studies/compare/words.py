"""Sentences and cells that page and console share."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pandas as pd

from featalign.data.task import Metric
from featalign.studies.result import statistics, with_spread

if TYPE_CHECKING:
    from featalign.studies.compare.result import CompareResult


def by(metric: Metric, value: float, std: float, seeds: int) -> str:
    """A mean with its standard deviation, where there are several seeds, in the metric's unit."""
    return with_spread(metric.shown(value), metric.shown(std) if metric.unit == "%" else f"{std:.2g}", seeds)


def signed(metric: Metric, gain: float) -> str:
    """A gain with its sign, in the metric's unit."""
    if math.isnan(gain):
        return "–"
    return f"{100 * gain:+.2f}" if metric.unit == "%" else f"{gain:+.4f}"


def value_of(result: CompareResult, row: str) -> str:
    """`accuracy 91.23 %` without the name: the headline metric of a row with its unit."""
    unit = f" {result.metric.unit}" if result.metric.unit else ""
    return f"{result.metric.shown(result.mean(row))}{unit}"


def matched(result: CompareResult) -> str:
    """Mean correlation of matched pairs by space and basis."""
    frame = result.frames["matches"]
    found = []
    for space, group in frame.groupby("space", sort=False):
        names = {"neuron": "units", "feature": "features"}
        means = group.groupby("basis", sort=False)["mean_correlation"].mean()
        found.append(f"{space}: " + ", ".join(f"{names[str(basis)]} {mean:.2f}" for basis, mean in means.items()))
    return "; ".join(found)


def shares(values: pd.Series) -> tuple[str, str]:
    """Mean of explained variances, and the values by seed."""
    return f"{statistics(values)[0]:.3f}", ", ".join(f"{value:.3f}" for value in values.dropna())


def distance(result: CompareResult) -> str:
    """How far the best feature-basis network is from the best one, and what the spaces say about it."""
    best = result.best("one-shot", "one-shot + refit")
    feature = result.best("one-shot", "one-shot + refit", basis="feature")
    spaces = result.frames["spaces"]
    spaces = spaces[spaces["features"].notna()]
    if best is None or feature is None or spaces.empty:
        return ""
    metric = result.metric
    if best == feature:
        opening = f"The best single network, {best}, is a feature-basis one."
    else:
        gap = metric.gain(result.mean(best), result.mean(feature))
        size = f"{100 * gap:.2f} points" if metric.unit == "%" else f"{gap:.4g} {metric.unit}".strip()
        opening = f"The best feature-basis network ({feature}) is {size} behind the best single one ({best})."
    matches = result.frames["matches"]
    parts = []
    for space, group in spaces.groupby("space", sort=False):
        plan = matches[(matches["space"] == space) & (matches["basis"] == "feature")]
        unmatched = 1 - plan[["energy_first", "energy"]].min(axis=1).mean()
        means = {key: group[key].mean() for key in ("features", "permutation", "linear")}
        parts.append(
            f"{space}: matched features explain {means['features']:.2f} of the reference's held-out variance, the best "
            f"permutation {means['permutation']:.2f}, the best linear map {means['linear']:.2f}; "
            f"{100 * unmatched:.0f} % of one client's code energy has no partner"
        )
    return opening + " Why: " + "; ".join(parts) + "."
