"""What every experiment returns: one row per figure of one network, summarised over seeds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featalign import storage
from featalign.errors import CorruptFile

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = 1
KEYS = ["part", "row", "x"]


@dataclass(frozen=True)
class Row:
    """Test accuracy of one network.

    Attributes:
        seed: of the repetition.
        part: panel of the experiment, such as "same initialisation".
        row: the network or the way it was fused.
        x: abscissa (mixing weight, probe size, ...), None for what does not depend on it.
        accuracy: share of the test split that is right.
        seconds: that the fusion took, alignment included; 0 where nothing was fused.
    """

    seed: int
    part: str
    row: str
    x: float | None
    accuracy: float
    seconds: float = 0.0


@dataclass(frozen=True)
class Published:
    """A value of the paper, in per cent: where it stands, and which of our rows on which data set it belongs beside."""

    value: float
    where: str
    part: str
    row: str
    x: float | None = None
    dataset: str = "mnist"


@dataclass(frozen=True)
class PaperResult:
    """All rows of an experiment.

    Attributes:
        experiment: its registered name.
        command: that makes the file, but for its number of seeds.
        config: everything that decides the numbers.
        rows: over all seeds.
        facts: seconds and peak memory of the run, versions.
    """

    experiment: str
    command: str
    config: Mapping[str, Any]
    rows: tuple[Row, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values; accuracies to five digits, so that files stay small."""
        rows = [
            {**asdict(row), "accuracy": round(row.accuracy, 5), "seconds": round(row.seconds, 3)} for row in self.rows
        ]
        return {
            "schema": SCHEMA,
            "experiment": self.experiment,
            "command": self.command,
            "config": self.config,
            "facts": self.facts,
            "columns": list(rows[0]) if rows else [],
            "rows": [list(row.values()) for row in rows],
        }

    @classmethod
    def load(cls, path: Path | str) -> PaperResult:
        """The result that `save` wrote; raises `CorruptFile` for another file."""
        content = storage.read_json(path)
        if not isinstance(content, Mapping) or content.get("schema") != SCHEMA or "experiment" not in content:
            raise CorruptFile(f"{str(path)!r} is no result of 'featalign bench paper'; run the experiment again")
        rows = tuple(Row(**dict(zip(content["columns"], row))) for row in content["rows"])
        return cls(content["experiment"], content["command"], content["config"], rows, content["facts"])

    def to_frame(self) -> pd.DataFrame:
        """Per part, row and abscissa: mean accuracy in per cent, its standard deviation, the half-width of the 95 %
        interval (Student's, over seeds; NaN for one seed), the count of seeds and mean seconds."""
        import pandas as pd
        from scipy.stats import t

        frame = pd.DataFrame([asdict(row) for row in self.rows])
        frame["accuracy"] *= 100
        frame["x"] = frame["x"].astype(float)
        grouped = frame.groupby(KEYS, sort=False, dropna=False)
        found = grouped.agg(
            mean=("accuracy", "mean"), std=("accuracy", "std"), seeds=("seed", "nunique"), seconds=("seconds", "mean")
        ).reset_index()
        count = found["seeds"].to_numpy()
        found["interval"] = t.ppf(0.975, (count - 1).clip(1)) * found["std"] / count**0.5
        return found
