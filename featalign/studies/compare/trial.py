"""One repetition of a comparison: its networks, what was fused from them, and the records of the frames."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from torch import nn

from featalign.clients.cohort import Cohort
from featalign.clients.evaluation import evaluate
from featalign.data.inputs import Inputs
from featalign.dictionaries.dictionary import Dictionary
from featalign.errors import SpaceMismatch
from featalign.fuse import FusionProblem, FusionResult
from featalign.studies.compare.rows import Score

Trained = dict[str, dict[int, Dictionary]]  # by space, then client


@dataclass
class Trial:
    """One repetition: the networks, everything fused from them, and the records of the frames.

    Attributes:
        cohort, problem: the networks and what may be known of them.
        scored: inputs with targets, or None where nothing can be scored.
        results: by row of the table.
        reasons: by method, why it did not run.
        trained: by need (`dictionaries`, `transcoders`), what was trained for it.
        records: by frame.
        arrays, browser: of the page, for the first repetition.
        notes: what belongs on the page.
    """

    cohort: Cohort
    problem: FusionProblem
    scored: Inputs | None
    results: dict[str, FusionResult] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    trained: dict[str, Trained] = field(default_factory=dict)
    records: dict[str, list[Any]] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    browser: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def seed(self) -> int:
        """Of the repetition."""
        return self.cohort.seed

    def add(self, frame: str, *rows: Any) -> None:
        """Add rows to a frame."""
        self.records.setdefault(frame, []).extend(rows)

    def score(self, row: str, method: str, stage: str, module: nn.Module, mixing: float) -> None:
        """Record every metric of a network."""
        if self.scored is None:
            return
        for metric, value in evaluate(module, self.scored, self.cohort.task).items():
            self.add("scores", Score(self.seed, row, method, stage, mixing, metric, value))

    @cached_property
    def modules(self) -> dict[str, nn.Module]:
        """Fused networks by row in the layout that the clients came in, canonical where it cannot hold them."""
        found = {}
        for row, result in self.results.items():
            try:
                found[row] = self.cohort.restore(result.module)
            except SpaceMismatch:
                found[row] = result.module
        return found
