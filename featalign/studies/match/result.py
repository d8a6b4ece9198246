"""The result of a match: frames of pairs, features and nulls, in memory and as a run folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd

from featalign import options, storage
from featalign.align.correspondence import OWN
from featalign.data.inputs import Inputs
from featalign.dictionaries import Dictionary
from featalign.errors import BadOption
from featalign.studies.match.config import MatchConfig, MatchRunConfig
from featalign.studies.match.reading import Reading
from featalign.studies.match.rows import FRAMES
from featalign.studies.match.subjects import Subject
from featalign.studies.result import StudyResult, study

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(eq=False)
class Material:
    """What a match was made from, for cards and for going on; a result that was loaded has none.

    Attributes:
        subjects: the clients, with networks, sites and bases.
        inputs: that rows came from, None where activations were given.
        tokenizer: for texts.
        readings: by site, of every client: sparse codes of all rows, in order of the inputs, and a sample of the rows.
    """

    subjects: Sequence[Subject]
    inputs: Inputs | None
    tokenizer: Any
    readings: Mapping[str, Sequence[Reading]]


@study("match")
class MatchResult(StudyResult):
    """What `match` and `run` return.

    Attributes:
        material: what it was made from.
    """

    rows: ClassVar[Mapping[str, type]] = FRAMES
    config_type: ClassVar[type] = MatchRunConfig

    material: Material | None = field(default=None)

    @property
    def pairs(self) -> pd.DataFrame:
        """Latents that are one feature, or one and its part; columns: `studies.match.rows.PairRow`."""
        return self.frames["pairs"]

    @property
    def features(self) -> pd.DataFrame:
        """Every latent of every client with its kind and partner; columns: `FeatureRow`."""
        return self.frames["features"]

    @property
    def own(self) -> pd.DataFrame:
        """The latents that are in no pair with anybody, those with most energy first."""
        found = self.features[self.features["kind"] == OWN]
        return found.sort_values("energy", ascending=False, kind="stable").reset_index(drop=True)

    @property
    def summary(self) -> pd.DataFrame:
        """How every two clients agree at every site, and what controls give; columns: `SummaryRow`."""
        return self.frames["summary"]

    @property
    def quality(self) -> pd.DataFrame:
        """The dictionaries that everything rests on; columns: `QualityRow`."""
        return self.frames["quality"]

    @property
    def places(self) -> list[tuple[str, str, str]]:
        """Site and names of every comparison."""
        frame = self.summary[self.summary["control"] == "none"]
        return list(frame[["site", "client_a", "client_b"]].itertuples(index=False, name=None))

    def to_frame(self) -> pd.DataFrame:
        """The summary."""
        return self.summary

    def lines(self) -> list[str]:
        """What was found, a line per site and two clients."""
        return [sentence(self, *place) for place in self.places]

    def to_json(self, path: Path | str | None = None) -> str:
        """The versioned match JSON (its schema: `fa.studies.schema("match")`), also written to `path` if given."""
        text = super().to_json()
        if path is not None:
            storage.write_bytes(path, text.encode("ascii"))
        return text

    def to_csv(self, folder: Path | str) -> Path:
        """One CSV file for each frame, in a new folder."""
        with storage.atomic_folder(folder, False) as temporary:
            for name, frame in self.frames.items():
                storage.write_bytes(temporary / f"{name}.csv", frame.to_csv(index=False).encode("utf-8"))
        return Path(folder)

    def to_parquet(self, folder: Path | str) -> Path:
        """One Parquet file for each frame, in a new folder; raises `BadOption` where pyarrow is not installed."""
        try:
            import pyarrow  # noqa: F401
        except ImportError as error:
            raise BadOption("Parquet needs pyarrow: pip install pyarrow, or use to_csv") from error
        with storage.atomic_folder(folder, False) as temporary:
            for name, frame in self.frames.items():
                frame.to_parquet(temporary / f"{name}.parquet", engine="pyarrow", index=False)
        return Path(folder)

    @property
    def figures(self) -> dict[str, go.Figure]:
        """The figures of the page, by site, clients and name."""
        from featalign.plots import match as plots

        found = {}
        for place in self.places:
            name = "/".join(place)
            best, chance = (self.arrays.get(f"{name}/{kind}") for kind in ("best", "chance"))
            if best is not None and chance is not None:
                found[f"{name}/scores"] = plots.score_histogram(best, chance, float(self.config.minimum))
            found[f"{name}/flow"] = plots.flow(self._counts(*place), place[1], place[2])
        return found

    def _counts(self, site: str, a: str, b: str) -> dict[str, tuple[int, int]]:
        """Latents of either client by what they are in this comparison."""
        frame = self.pairs
        here = frame[(frame["site"] == site) & (frame["client_a"] == a) & (frame["client_b"] == b)]
        row = self.row(site, a, b)
        found = {
            kind: (int(part["latent_a"].nunique()), int(part["latent_b"].nunique()))
            for kind, part in here.groupby("kind", sort=False)
        }
        return {str(kind): counts for kind, counts in found.items()} | {
            "own": (int(row["own_a"]), int(row["own_b"])),
            "dead": (int(row["dead_a"]), int(row["dead_b"])),
        }

    def row(self, site: str, a: str, b: str, control: str = "none") -> pd.Series:
        """The summary of one comparison."""
        frame = self.summary
        here = (frame["site"] == site) & (frame["client_a"] == a) & (frame["client_b"] == b)
        return frame[here & (frame["control"] == control)].iloc[0]

    def page(self) -> str:
        return self.neighbour("page").match_page(self)

    def write(self, folder: Path) -> None:
        super().write(folder)
        for subject in self.material.subjects if self.material is not None else ():
            for label in subject.trained:
                basis = subject.bases[label]
                assert isinstance(basis, Dictionary)
                basis.save(folder / "dictionaries" / storage.safe_name(subject.name) / storage.safe_name(label))

    @classmethod
    def read_config(cls, values: Mapping[str, Any], where: str) -> MatchConfig:
        kind = MatchRunConfig if "bases" in values else MatchConfig
        return options.read(kind, values, where)

    def _title(self) -> str:
        return f"match of {self.facts.get('title', 'dictionaries')}: {'; '.join(self.lines())}"


def sentence(result: MatchResult, site: str, a: str, b: str) -> str:
    """One comparison in a sentence."""
    row = result.row(site, a, b)
    null = result.row(site, a, b, "shuffled")
    return (
        f"{site}: {row['matched']} of {row['alive_a']} latents of {a} and {row['alive_b']} of {b} are one feature, "
        f"{row['splits']} of {a} are split, {row['merges']} of {b} are merged, {row['own_a']} are {a}'s own and "
        f"{row['own_b']} {b}'s; mean score of the best matching {row['mcc']:.2f}, by chance {null['mcc']:.2f}"
    )
