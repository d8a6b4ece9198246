"""What a toy comparison found: losses, matches against the truth, regimes, which features survive."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd

from featalign.align.regime import Regime
from featalign.studies.result import StudyResult, over_seeds, statistics, study
from featalign.studies.toy.config import ToySettings

if TYPE_CHECKING:
    import plotly.graph_objects as go

STAGES = ("raw", "distilled", "calibrated")


@dataclass(frozen=True)
class Score:
    """Held-out squared error, summed over features, of one model.

    Attributes:
        seed: the repetition.
        row: the method, a client, or joint training.
        method: registered name; empty for clients and joint training.
        stage: raw, calibrated (bias and one gain fitted to the task) or distilled (the same, fitted to what each client
            returns on its own inputs); client and joint are calibrated as well.
        value: the loss.
    """

    seed: int
    row: str
    method: str
    stage: str
    value: float


@dataclass(frozen=True)
class MethodRow:
    """A registered method, whether it ran and if not why.

    Attributes:
        method: registered name.
        basis: none, neuron, feature or pool.
        summary: one line for tables.
        available: whether it ran.
        reason: why it did not, or empty.
    """

    method: str
    basis: str
    summary: str
    available: bool
    reason: str


@dataclass(frozen=True)
class MatchRow:
    """Matches of the second client and the reference against the truth.

    Attributes:
        seed: the repetition.
        neuron, feature: mean |correlation| of matched units, held out, and mean correlation of matched latents.
        true_pairs, false_pairs: features that a matched pair agrees on, and pairs that stand for two features.
        precision, recall: share of pairs that are true, and of common features that have one.
        mcc: mean correlation of the features with the latents assigned to them.
        recovered: features with a latent above 0.7, mean of both clients.
    """

    seed: int
    neuron: float
    feature: float
    true_pairs: int
    false_pairs: int
    precision: float
    recall: float
    mcc: float
    recovered: float


@dataclass(frozen=True)
class RegimeRow:
    """How the second client's code relates to the reference's, before anything is fused.

    Attributes:
        seed: the repetition.
        name, recommended, explanation: the verdict, the registered method that follows, and one sentence.
        permutation, orthogonal, linear, features: share of the reference's held-out variance that the best map of each
            kind explains, the last by matched latents.
        neuron_correlation, feature_correlation: of matched units and of matched latents, held out.
        matched_first, matched: share of the code energy of each client that is matched.
        gram_agreement: correlation of the off-diagonal Gram entries of matched atoms.
        commutation_defect: of the best rotation, where an elementwise nonlinearity follows.
    """

    seed: int
    name: str
    recommended: str
    explanation: str
    permutation: float
    orthogonal: float
    linear: float
    features: float | None
    neuron_correlation: float
    feature_correlation: float | None
    matched_first: float | None
    matched: float | None
    gram_agreement: float | None
    commutation_defect: float | None

    @classmethod
    def of(cls, seed: int, found: Regime) -> RegimeRow:
        """The row of a verdict."""
        first, second = found.matched or (None, None)
        known = {item.name: getattr(found, item.name) for item in fields(cls) if hasattr(found, item.name)}
        return cls(**{**known, "seed": seed, "matched_first": first, "matched": second})


@dataclass(frozen=True)
class SurvivalRow:
    """How much of a feature a fused model returns.

    Attributes:
        seed: the repetition.
        method: registered name.
        feature: its number.
        value: share of its energy that the calibrated model returns.
    """

    seed: int
    method: str
    feature: int
    value: float


@study("toy")
class ToyResult(StudyResult):
    """Figures of a toy comparison; `facts` holds the loss of returning nothing (`zero`) and the words.

    Attributes:
        example: the problem and the fused networks of the first seed, for a closer look; not saved.
    """

    rows: ClassVar[Mapping[str, type]] = {
        "scores": Score,
        "methods": MethodRow,
        "matching": MatchRow,
        "regimes": RegimeRow,
        "survival": SurvivalRow,
    }
    config_type: ClassVar[type] = ToySettings
    example: Mapping[str, Any] = field(default_factory=dict)

    def loss(self, method: str, stage: str = "calibrated") -> float:
        """Mean loss over seeds."""
        scores = self.frames["scores"]
        return statistics(scores["value"][(scores["method"] == method) & (scores["stage"] == stage)])[0]

    @property
    def joint(self) -> float:
        """Mean loss of a model trained on everything, calibrated."""
        return self.loss("", "joint")

    @property
    def single(self) -> float:
        """Mean loss of the clients, calibrated."""
        return self.loss("", "client")

    def to_frame(self) -> pd.DataFrame:
        """One row per method, best first: mean loss of each stage, and the calibrated one over that of joint training.

        `std` over seeds, of the calibrated loss. Joint training and the clients stand first.
        """
        scores = self.frames["scores"]
        means = over_seeds(scores[scores["method"] != ""], ("method", "stage"))
        frame = means.pivot(index="method", columns="stage", values="mean")[list(STAGES)]
        frame["std"] = means[means["stage"] == "calibrated"].set_index("method")["std"]
        frame = frame.sort_values("calibrated")
        head = pd.DataFrame({"calibrated": {"(joint training)": self.joint, "(one client)": self.single}})
        frame = pd.concat([head.reindex(columns=frame.columns), frame])
        frame["times joint"] = frame["calibrated"] / self.joint
        return frame.rename_axis("method")

    @property
    def winner(self) -> str:
        """The method with the least calibrated loss."""
        scores = self.frames["scores"]
        losses = scores[scores["stage"] == "calibrated"].groupby("method")["value"].mean()
        return str(losses.idxmin())

    @property
    def verdict(self) -> pd.Series:
        """The first of the regimes that most seeds have, with their share as `agreement`."""
        regimes = self.frames["regimes"]
        counts = regimes["name"].value_counts()
        first = regimes[regimes["name"] == counts.index[0]].iloc[0].copy()
        first["agreement"] = float(counts.iloc[0] / len(regimes))
        return first

    @property
    def survival(self) -> pd.DataFrame:
        """Share of each feature's energy that calibrated models return, `[methods, features]`, mean over seeds."""
        found = self.frames["survival"].groupby(["method", "feature"], sort=False)["value"].mean()
        return found.unstack("feature")

    @property
    def figures(self) -> dict[str, go.Figure]:
        from featalign.plots import toy

        frame, methods = self.to_frame().iloc[2:].reset_index(), self.frames["methods"]
        basis = frame["method"].map(methods.set_index("method")["basis"])
        lines = {"joint": self.joint, "one client": self.single}
        losses = toy.methods(frame.assign(basis=basis), lines, float(self.facts["zero"]))
        return {"losses": losses, "survival": toy.survival(self.survival)}

    def page(self) -> str:
        return self.neighbour("page").toy_page(self)

    def summary(self) -> str:
        """Matches, regime and winner in three lines."""
        found, verdict = self.frames["matching"], self.verdict
        return (
            f"matched |correlation|: neurons {found['neuron'].mean():.2f}, features {found['feature'].mean():.2f}; "
            f"true pairs {found['true_pairs'].tolist()} of {self.config.common}, "
            f"false {found['false_pairs'].tolist()}\n"
            f"regime: {verdict['name']} ({verdict['agreement']:.0%} of seeds), recommends {verdict['recommended']}: "
            f"{verdict['explanation']}\nbest method: {self.winner}"
        )
