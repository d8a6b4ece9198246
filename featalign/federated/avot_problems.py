"""Objectives of FedAVOT's experiments: `F(x) = sum_i p_i f_i(x)` with users whose optimum drifts with availability."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.optimize

from featalign.data.datasets import Dataset
from featalign.data.partition import partition

SAMPLES = 40  # of a user of softmax regression
RIDGE = 1e-2  # makes softmax regression strongly convex


@dataclass(frozen=True)
class Objective:
    """A federated problem, in float64.

    Attributes:
        size: numbers in a model.
        gradients: models `[steps, size]` and users `[u]` to `[steps, u, size]`.
        excess: models `[steps, size]` to `F(x) - min F`, `[steps]`; of a problem that is not convex the squared norm of
            the gradient of F.
        curvature: the largest of any user.
        start: `[size]` where all rules start; None is zero.
    """

    size: int
    gradients: Callable[[np.ndarray, np.ndarray], np.ndarray]
    excess: Callable[[np.ndarray], np.ndarray]
    curvature: float
    start: np.ndarray | None = None


def linear_regression(p: np.ndarray, rates: np.ndarray, dimension: int, seed: int) -> Objective:
    """Least squares; a user's optimum moves along one direction with the logarithm of its rate of presence."""
    users, rng = len(p), np.random.default_rng([seed, 3])
    drift = rng.standard_normal(dimension)
    drift /= np.linalg.norm(drift)
    shift = -np.log(rates)
    optimum = rng.standard_normal((users, dimension)) * 0.1 + np.outer((shift - shift.mean()) / shift.std(), drift)
    design = rng.standard_normal((users, 3 * dimension, dimension))
    curvature = np.einsum("usd,use->ude", design, design) / design.shape[1]
    pull = np.einsum("ude,ue->ud", curvature, optimum)
    mean = np.einsum("u,ude->de", p, curvature)
    best = np.linalg.solve(mean, p @ pull)

    def gradients(models: np.ndarray, index: np.ndarray) -> np.ndarray:
        return np.einsum("ude,se->sud", curvature[index], models) - pull[index]

    def excess(models: np.ndarray) -> np.ndarray:
        off = models - best
        return 0.5 * np.einsum("sd,de,se->s", off, mean, off)

    largest = max(float(np.linalg.eigvalsh(part).max()) for part in curvature)
    return Objective(dimension, gradients, excess, largest)


def softmax_regression(dataset: Dataset, p: np.ndarray, rates: np.ndarray, seed: int) -> Objective:
    """Softmax regression with a ridge; the rarer a user, the later the classes it holds (sorted labels, dealt)."""
    users, rng = len(p), np.random.default_rng([seed, 3])
    count = min(SAMPLES, len(dataset.train_labels) // users)
    chosen = rng.permutation(len(dataset.train_labels))[: users * count]
    inputs = dataset.train_inputs[chosen].flatten(1).double().numpy()
    labels = dataset.train_labels[chosen].numpy()
    inputs = (inputs - inputs.mean(0)) / max(float(inputs.std()), 1e-12)
    inputs = np.concatenate([inputs / np.sqrt(inputs.shape[1]), np.ones((len(inputs), 1))], axis=1)
    order, place = np.argsort(labels, kind="stable"), np.argsort(np.argsort(-rates, kind="stable"))
    dealt = order.reshape(users, count)[place]  # frequent users first
    x, y = inputs[dealt], labels[dealt]  # [users, count, d], [users, count]
    classes = int(labels.max()) + 1
    one_hot = np.eye(classes)[y]
    size = x.shape[2] * classes

    def logits(models: np.ndarray, index: np.ndarray) -> np.ndarray:
        return x[index] @ models.reshape(len(models), 1, -1, classes)  # [steps, users, count, classes]

    def gradients(models: np.ndarray, index: np.ndarray) -> np.ndarray:
        z = logits(models, index)
        z = np.exp(z - z.max(-1, keepdims=True))
        off = z / z.sum(-1, keepdims=True) - one_hot[index]
        found = x[index].transpose(0, 2, 1) @ off / count
        return found.reshape(len(models), len(index), size) + RIDGE * models[:, None]

    def value(models: np.ndarray) -> np.ndarray:
        z = logits(models, everyone)
        top = z.max(-1, keepdims=True)
        loss = np.log(np.exp(z - top).sum(-1)) + top[..., 0] - np.take_along_axis(z, y[None, ..., None], -1)[..., 0]
        return loss.mean(-1) @ p + 0.5 * RIDGE * (models**2).sum(-1)

    everyone = np.arange(users)
    best = scipy.optimize.minimize(
        lambda m: float(value(m[None])[0]),
        np.zeros(size),
        jac=lambda m: p @ gradients(m[None], everyone)[0],
        method="L-BFGS-B",
        options={"maxiter": 5000, "ftol": 1e-15, "gtol": 1e-9},
    )
    spread = max(float(np.linalg.eigvalsh(part.T @ part / count).max()) for part in x)
    return Objective(size, gradients, lambda models: value(models) - best.fun, 0.5 * spread + RIDGE)


def mlp_classification(dataset: Dataset, p: np.ndarray, seed: int, hidden: int = 16, alpha: float = 0.1) -> Objective:
    """Cross-entropy of a network with one hidden layer (tanh), labels dealt by Dirichlet: not convex.

    Every user has the same number of samples, drawn with replacement from its part.
    """
    users, rng = len(p), np.random.default_rng([seed, 3])
    split = partition(dataset.train_labels, "dirichlet", users, seed, alpha=alpha)
    inputs = dataset.train_inputs.flatten(1).double().numpy()
    inputs = (inputs - inputs.mean(0)) / max(float(inputs.std()), 1e-12) / np.sqrt(inputs.shape[1])
    labels = dataset.train_labels.numpy()
    rows = [np.asarray(part) if len(part) else np.arange(len(labels)) for part in split.indices]
    chosen = np.stack([rng.choice(part, SAMPLES) for part in rows])
    x, one_hot = inputs[chosen], np.eye(int(labels.max()) + 1)[labels[chosen]]
    width, classes = x.shape[2], one_hot.shape[2]
    cut = width * hidden

    def gradients(models: np.ndarray, index: np.ndarray) -> np.ndarray:
        first, second = models[:, :cut].reshape(-1, width, hidden), models[:, cut:].reshape(-1, hidden, classes)
        held = np.tanh(np.einsum("und,sdh->sunh", x[index], first))
        logits = np.einsum("sunh,shc->sunc", held, second)
        odds = np.exp(logits - logits.max(-1, keepdims=True))
        off = (odds / odds.sum(-1, keepdims=True) - one_hot[index]) / SAMPLES
        back = np.einsum("sunc,shc->sunh", off, second) * (1 - held**2)
        into = np.einsum("und,sunh->sudh", x[index], back).reshape(len(models), len(index), cut)
        out = np.einsum("sunh,sunc->suhc", held, off).reshape(len(models), len(index), -1)
        return np.concatenate([into, out], axis=2)

    def squared(models: np.ndarray) -> np.ndarray:
        mean = np.einsum("u,sud->sd", p, gradients(models, np.arange(users)))
        return (mean**2).sum(1)

    start = rng.standard_normal(cut + hidden * classes) / np.sqrt(hidden)
    return Objective(len(start), gradients, squared, _curvature(gradients, start, users, rng), start)


def _curvature(
    gradients: Callable[[np.ndarray, np.ndarray], np.ndarray], at: np.ndarray, users: int, rng: np.random.Generator
) -> float:
    """The largest curvature of any user at a point, by power iteration on differences of gradients, doubled."""
    found = []
    for user in range(users):
        index, step = np.array([user]), rng.standard_normal(len(at))
        for _ in range(8):
            step /= np.linalg.norm(step)
            ends = gradients(np.stack([at + 1e-4 * step, at - 1e-4 * step]), index)[:, 0]
            step = (ends[0] - ends[1]) / 2e-4
        found.append(float(np.linalg.norm(step)))
    return 2 * max(found)
