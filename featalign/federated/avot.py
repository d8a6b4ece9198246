"""FedAVOT's experiments: users who are rarely all there, whose optimum drifts with rarity (Rahimi, Kalogerias 2025).

Every rule sees the same rounds. In each the users present take one gradient step on their own loss from the common
model, and the server averages. With users alike any convex weights work; here rare users want something else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from featalign.data import load
from featalign.errors import BadOption
from featalign.federated.avot_problems import Objective, linear_regression, mlp_classification, softmax_regression
from featalign.federated.select import Presence, groups, restricted
from featalign.transport import AvotWeights

RULES = {
    "fedavot": "FedAVOT",
    "fedavot_online": "FedAVOT, availability learned",
    "uniform": "uniform mean (FedAvg)",
    "renormalised": "p-weighted, renormalised",
    "horvitz_thompson": "Horvitz-Thompson on deltas",
    "unnormalised": "p-weighted, not normalised (as published)",
    "full": "full participation",
}
PROBLEMS: dict[str, Callable[[np.ndarray, np.ndarray, int, int, str], Objective]] = {
    "linear": lambda p, rates, seed, dimension, name: linear_regression(p, rates, dimension, seed),
    "softmax": lambda p, rates, seed, dimension, name: softmax_regression(load(name), p, rates, seed),
    "mlp": lambda p, rates, seed, dimension, name: mlp_classification(load(name), p, seed),
}
POINTS = 400  # rounds of a curve at which the excess loss is measured


@dataclass(frozen=True)
class Rate:
    """`log excess = intercept + slope log round`, with standard errors over seeds."""

    slope: float
    intercept: float
    slope_error: float
    intercept_error: float


@dataclass(frozen=True)
class AvotCurves:
    """Excess loss over the p-weighted optimum.

    Attributes:
        steps: multiples of the inverse of the largest curvature.
        rounds: `[points]` at which the excess was measured.
        excess: per rule, `[seeds, steps, points]`.
        feasibility: of every seed's law of presence.
    """

    steps: list[float]
    rounds: np.ndarray
    excess: dict[str, np.ndarray]
    feasibility: list[dict[str, Any]]

    @property
    def seeds(self) -> int:
        """How many."""
        return len(self.feasibility)

    @property
    def curves(self) -> dict[str, np.ndarray]:
        """`[points]` at the middle step, mean over seeds."""
        return {rule: values[:, len(self.steps) // 2].mean(0) for rule, values in self.excess.items()}

    @property
    def floors(self) -> dict[str, np.ndarray]:
        """`[steps]` mean over the last fifth of the rounds and over seeds."""
        return {rule: values.mean(0) for rule, values in self._settled().items()}

    @property
    def spreads(self) -> dict[str, np.ndarray]:
        """`[steps]` standard deviation of the floors over seeds."""
        return {rule: values.std(0) for rule, values in self._settled().items()}

    def rate(self, rule: str, step: int = -1) -> Rate:
        """Least squares in logarithms over the last nine tenths of the rounds, one fit per seed."""
        late = self.rounds >= self.rounds[-1] / 10
        return _fitted(self.rounds[late], self.excess[rule][:, step, late])

    def to_dict(self) -> dict[str, Any]:
        """Feasibility first, then floors and their spread, as plain numbers."""
        floors = {rule: values.tolist() for rule, values in self.floors.items()}
        spreads = {rule: values.tolist() for rule, values in self.spreads.items()}
        return {"feasibility": self.feasibility, "steps": self.steps, "floors": floors, "spreads": spreads}

    def _settled(self) -> dict[str, np.ndarray]:
        last = max(1, len(self.rounds) // 5)
        return {rule: values[:, :, -last:].mean(axis=2) for rule, values in self.excess.items()}


def avot_experiment(
    problem: Literal["linear", "softmax", "mlp"] = "linear",
    availability: Literal["restricted", "coordinated"] = "restricted",
    *,
    users: int = 40,
    present: int = 2,
    subsets: int = 120,
    dimension: int = 8,
    dataset: str = "digits",
    rounds: int = 4000,
    steps: tuple[float, ...] = (0.2, 0.05, 0.0125),
    decay: float = 0.0,
    importance: Literal["deliverable", "uniform"] = "deliverable",
    seeds: int = 5,
) -> AvotCurves:
    """FedAVOT against its rivals.

    Args:
        problem: linear regression, softmax regression on a data set of which rare users hold rare classes, or a network
            with a hidden layer on labels dealt by Dirichlet(.1), which is not convex: what is measured of it is the
            squared norm of the gradient.
        availability: "restricted" (fixed subsets, some users a hundred times rarer) or "coordinated" (groups).
        present: users a round.
        subsets, dimension, dataset: of restricted availability, linear and softmax regression.
        steps: of the users, as multiples of the inverse of the largest curvature.
        decay: the step falls as `round^-decay`.
        importance: one that the law can deliver and that favours rare users, or equal (which it may not deliver).
    """
    if problem not in PROBLEMS or availability not in ("restricted", "coordinated"):
        shown = ", ".join(PROBLEMS)
        raise BadOption(f"experiment '{problem}', '{availability}'; choices: {shown}; restricted, coordinated")
    runs, verdicts, at = [], [], np.unique(np.linspace(1, rounds, min(POINTS, rounds)).astype(int))
    for seed in range(seeds):
        law = (
            restricted(users, k=present, subsets=subsets, seed=seed)
            if availability == "restricted"
            else groups(users, size=present, stride=max(1, users // 3), rarest=0.05)
        )
        p = deliverable(law, seed) if importance == "deliverable" else np.full(users, 1 / users)
        objective = PROBLEMS[problem](p, law.rates, seed, dimension, dataset)
        weights = AvotWeights(p).fit(law.subsets, law.q, strict=False)
        verdicts.append({key: value for key, value in weights.report().items() if key != "phat"})
        runs.append(_one_seed(objective, law, p, weights, at, steps, decay, seed))
    excess = {rule: np.array([run[rule] for run in runs]) for rule in RULES}
    return AvotCurves(list(steps), at, excess, verdicts)


@dataclass(frozen=True)
class AvotRates:
    """Error over the number of rounds T, with a step that falls as `1 / sqrt(T)` (fixed within a run).

    Attributes:
        horizons: `[T]` numbers of rounds.
        errors: per rule, `[seeds, T]`: mean excess over all rounds of a run but the first tenth.
    """

    horizons: np.ndarray
    errors: dict[str, np.ndarray]

    def rate(self, rule: str) -> Rate:
        """Least squares of the logarithms, one fit per seed."""
        return _fitted(self.horizons, self.errors[rule])


def avot_rates(
    problem: Literal["linear", "softmax", "mlp"] = "linear",
    horizons: tuple[int, ...] = (250, 500, 1000, 2000, 4000),
    step: float = 0.4,
    **options: Any,
) -> AvotRates:
    """The error that each rule reaches in T rounds; `options` are those of `avot_experiment`.

    `step` is that of the shortest run, as a multiple of the inverse of the largest curvature.
    """
    errors: dict[str, list[np.ndarray]] = {rule: [] for rule in RULES}
    for rounds in horizons:
        scaled = step * (horizons[0] / rounds) ** 0.5
        curves = avot_experiment(problem, rounds=rounds, steps=(scaled,), **options)
        late = curves.rounds > rounds / 10
        for rule, values in curves.excess.items():
            errors[rule].append(values[:, 0, late].mean(axis=1))
    return AvotRates(np.array(horizons), {rule: np.stack(found, axis=1) for rule, found in errors.items()})


def _fitted(at: np.ndarray, values: np.ndarray) -> Rate:
    """`log values [seeds, points] = intercept + slope log at`, one least-squares fit per seed."""
    design = np.stack([np.ones(len(at)), np.log(at)], axis=1)
    intercepts, slopes = np.linalg.lstsq(design, np.log(np.maximum(values, 1e-300)).T, rcond=None)[0]
    errors = [float(v.std(ddof=1) / len(v) ** 0.5) if len(v) > 1 else float("nan") for v in (slopes, intercepts)]
    return Rate(float(slopes.mean()), float(intercepts.mean()), *errors)


def deliverable(law: Presence, seed: int) -> np.ndarray:
    """An importance `[users]` that the law can deliver: within every subset the rarer users count more."""
    rng = np.random.default_rng([seed, 1])
    p = np.zeros(len(law.rates))
    assert law.q is not None
    for members, chance in zip(law.subsets, law.q):
        favour = rng.uniform(0.5, 1.5, len(members)) / law.rates[members]
        p[members] += chance * favour / favour.sum()
    return p / p.sum()


def _one_seed(
    objective: Objective,
    law: Presence,
    p: np.ndarray,
    weights: AvotWeights,
    at: np.ndarray,
    steps: tuple[float, ...],
    decay: float,
    seed: int,
) -> dict[str, np.ndarray]:
    """`{rule: [steps, points]}`."""
    rng, online, everyone = np.random.default_rng([seed, 2]), AvotWeights(p), np.arange(len(p))
    fixed = [coefficients(weights, p, law.rates, members) for members in law.subsets]
    rates = np.array(steps) / objective.curvature
    start = np.zeros(objective.size) if objective.start is None else objective.start
    models = {rule: np.tile(start, (len(steps), 1)) for rule in RULES}
    excess = {rule: np.zeros((len(steps), len(at))) for rule in RULES}
    point = 0
    for t, group in enumerate(rng.choice(len(law.subsets), at[-1], p=law.q), start=1):
        shares = {**fixed[group], "fedavot_online": online.weights(law.subsets[group])}
        online.update(law.subsets[group])
        rate = rates[:, None] * t**-decay
        for rule, model in models.items():
            index, share = (everyone, p) if rule == "full" else (law.subsets[group], shares[rule])
            change = -rate * np.einsum("u,sud->sd", share, objective.gradients(model, index))
            models[rule] = (share.sum() * model if rule == "unnormalised" else model) + change
        if t == at[point]:
            for rule, model in models.items():
                excess[rule][:, point] = objective.excess(model)
            point += 1
    return excess


def coefficients(weights: AvotWeights, p: np.ndarray, rates: np.ndarray, present: np.ndarray) -> dict[str, np.ndarray]:
    """What each rule multiplies the steps of the users who are present with, `[present]` each."""
    return {
        "fedavot": weights.weights(present),
        "uniform": np.full(len(present), 1 / len(present)),
        "renormalised": p[present] / p[present].sum(),
        "horvitz_thompson": p[present] / rates[present],
        "unnormalised": p[present],
    }
