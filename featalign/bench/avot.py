"""FedAVOT against FedAvg's ways of averaging: linear regression with heterogeneous users who are rarely all there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from featalign.transport import AvotWeights

RULES = {
    "fedavot": "FedAVOT",
    "uniform": "uniform mean (FedAvg)",
    "renormalised": "p-weighted, renormalised",
    "horvitz_thompson": "Horvitz-Thompson on deltas",
    "unnormalised": "p-weighted, not normalised (as published)",
    "full": "full participation",
}


@dataclass(frozen=True)
class AvotCurves:
    """Excess loss over the p-weighted optimum: `curves[rule] [rounds]` at the middle step, `floors[rule] [steps]`.

    Means over seeds; a floor is the mean over the last fifth of the rounds, its spread the deviation over seeds.
    """

    steps: list[float]
    curves: dict[str, np.ndarray]
    floors: dict[str, np.ndarray]
    spreads: dict[str, np.ndarray]
    seeds: int

    def to_dict(self) -> dict[str, Any]:
        """Floors only, as plain numbers."""
        floors = {rule: values.tolist() for rule, values in self.floors.items()}
        return {"steps": self.steps, "floors": floors, "spreads": {k: v.tolist() for k, v in self.spreads.items()}}


def avot_experiment(
    users: int = 40,
    present: int = 2,
    subsets: int = 120,
    dimension: int = 8,
    rounds: int = 4000,
    steps: tuple[float, ...] = (0.2, 0.05, 0.0125),
    seeds: int = 5,
) -> AvotCurves:
    """Federated linear regression in which a user's optimum drifts with how rarely the user shows up.

    The law: `subsets` pairs of users, frequent users far more often; the importance p is one that the law can
    deliver and that favours rare users. Each round the users present take one gradient step on their own quadratic
    loss from the common model, and the server averages by every rule in `RULES`; all rules see the same rounds.
    Steps are multiples of the inverse of the largest curvature.
    """
    runs = [_one_seed(users, present, subsets, dimension, rounds, steps, seed) for seed in range(seeds)]
    excess = {rule: np.array([run[rule] for run in runs]) for rule in RULES}  # [seeds, steps, rounds]
    last = max(1, rounds // 5)
    floors = {rule: values[:, :, -last:].mean(axis=2) for rule, values in excess.items()}
    return AvotCurves(
        list(steps),
        {rule: values[:, len(steps) // 2].mean(axis=0) for rule, values in excess.items()},
        {rule: values.mean(axis=0) for rule, values in floors.items()},
        {rule: values.std(axis=0) for rule, values in floors.items()},
        seeds,
    )


def rare_users_law(
    users: int, present: int, subsets: int, seed: int
) -> tuple[np.ndarray, list[np.ndarray], np.ndarray, np.ndarray]:
    """Importance p, subsets, their law q and availability of users; p is deliverable by construction.

    Rates fall geometrically over two orders of magnitude; p comes from weights within subsets that favour the rarer.
    """
    rng = np.random.default_rng(seed)
    rate = np.geomspace(1.0, 0.01, users)
    drawn = {tuple(sorted(rng.choice(users, present, replace=False, p=rate / rate.sum()))) for _ in range(20 * subsets)}
    kept = [np.array(sorted(drawn)[k]) for k in rng.permutation(len(drawn))[:subsets]]
    lone = np.setdiff1d(np.arange(users), np.concatenate(kept))  # everybody shows up now and then
    kept += [np.array([user, (user + 1 + rng.integers(users - 1)) % users]) for user in lone]
    q = np.array([rate[members].prod() ** 0.5 for members in kept])
    q /= q.sum()
    p, presence = np.zeros(users), np.zeros(users)
    for members, chance in zip(kept, q):
        favour = rate[members] ** -1.0 * rng.uniform(0.5, 1.5, len(members))
        p[members] += chance * favour / favour.sum()
        presence[members] += chance
    return p, kept, q, presence


def _one_seed(
    users: int, present: int, subsets: int, dimension: int, rounds: int, steps: tuple[float, ...], seed: int
) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1000 + seed)
    p, members, q, presence = rare_users_law(users, present, subsets, seed)
    drift = rng.standard_normal(dimension)
    drift /= np.linalg.norm(drift)
    shift = -np.log(presence)
    optimum = rng.standard_normal((users, dimension)) * 0.1 + np.outer((shift - shift.mean()) / shift.std(), drift)
    design = rng.standard_normal((users, 3 * dimension, dimension))
    curvature = np.einsum("usd,use->ude", design, design) / design.shape[1]
    pull = np.einsum("ude,ue->ud", curvature, optimum)
    mean = np.einsum("u,ude->de", p, curvature)
    best = np.linalg.solve(mean, p @ pull)
    rates = np.array(steps) / max(np.linalg.eigvalsh(part).max() for part in curvature)
    weights = AvotWeights(p).fit(members, q)
    coefficients = [_coefficients(weights, p, presence, group) for group in members]
    sequence = rng.choice(len(members), rounds, p=q)
    everyone = np.arange(users)
    excess = {rule: np.zeros((len(steps), rounds)) for rule in RULES}
    models = {rule: np.zeros((len(steps), dimension)) for rule in RULES}
    for t, group in enumerate(sequence):
        for rule in RULES:
            model = models[rule]
            index, share = (everyone, p) if rule == "full" else (members[group], coefficients[group][rule])
            gradient = np.einsum("ude,se->sud", curvature[index], model) - pull[index]
            change = -rates[:, None] * np.einsum("u,sud->sd", share, gradient)
            models[rule] = model = (share.sum() * model if rule == "unnormalised" else model) + change
            off = model - best
            excess[rule][:, t] = 0.5 * np.einsum("sd,de,se->s", off, mean, off)
    return excess


def _coefficients(
    weights: AvotWeights, p: np.ndarray, presence: np.ndarray, group: np.ndarray
) -> dict[str, np.ndarray]:
    """What each rule multiplies the users' steps with."""
    return {
        "fedavot": weights.weights(group),
        "uniform": np.full(len(group), 1 / len(group)),
        "renormalised": p[group] / p[group].sum(),
        "horvitz_thompson": p[group] / presence[group],
        "unnormalised": p[group],
    }
