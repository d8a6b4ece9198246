"""What a client's update counts for: registered weighings.

The aggregate of a round is `x + scale (fuse(mixing) - x)` for the server's weights `x`; with convex weights the scale
is one, weights on deltas that do not sum to one have their sum as scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from featalign.errors import BadOption
from featalign.federated.select import Presence
from featalign.registry import Registry
from featalign.transport import AvotWeights


@dataclass(frozen=True)
class Weights:
    """`mixing [present]`, non-negative and summing to one, and the `scale` of the step."""

    mixing: np.ndarray
    scale: float = 1.0


class Weigher:
    """Base of registered weighings.

    Attributes:
        p: `[clients]` importance, summing to one.
        sizes: `[clients]` samples.
        presence: the law of presence.
    """

    def __init__(self, p: np.ndarray, sizes: np.ndarray, presence: Presence) -> None:
        self.p, self.sizes, self.presence = p, sizes, presence

    def weights(self, present: np.ndarray) -> Weights:
        """`[present]`: of the clients of this round, given by index."""
        raise NotImplementedError

    def update(self, present: np.ndarray) -> None:
        """Learn from who was present, indices `[present]`."""

    def state(self) -> dict[str, Any]:
        """What was learned, as arrays and numbers."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`."""

    def facts(self) -> dict[str, Any]:
        """What is known before the first round, such as feasibility."""
        return {}


WEIGHINGS: Registry[type[Weigher]] = Registry("weighing")


def importance_of(importance: Any, sizes: np.ndarray) -> np.ndarray:
    """`[clients]` summing to one: "samples", "uniform", or a list; raises `BadOption`."""
    if isinstance(importance, str):
        known = {"samples": sizes.astype(np.float64), "uniform": np.ones(len(sizes))}
        if importance not in known:
            raise BadOption(f"importance '{importance}'; choices: {', '.join(known)}, or a list of one number a client")
        p = known[importance]
    else:
        p = np.asarray(importance, dtype=np.float64)
    if p.shape != sizes.shape or not np.isfinite(p).all() or (p < 0).any() or p.sum() <= 0:
        raise BadOption(f"importance of shape {list(p.shape)}; give {len(sizes)} numbers that are not negative")
    return p / p.sum()


def _convex(masses: np.ndarray) -> Weights:
    total = masses.sum()
    if total <= 0:
        raise BadOption("nobody who is present carries importance; give them some, or select others")
    return Weights(masses / total)


@WEIGHINGS.register("samples")
class Samples(Weigher):
    """By number of samples, as FedAvg (McMahan et al. 2017)."""

    def weights(self, present: np.ndarray) -> Weights:
        return _convex(self.sizes[present].astype(np.float64))


@WEIGHINGS.register("uniform")
class Uniform(Weigher):
    """Equal weights."""

    def weights(self, present: np.ndarray) -> Weights:
        return _convex(np.ones(len(present)))


@WEIGHINGS.register("p-renormalised")
class Renormalised(Weigher):
    """By importance, renormalised over who is present: convex, biased."""

    def weights(self, present: np.ndarray) -> Weights:
        return _convex(self.p[present])


@WEIGHINGS.register("horvitz-thompson")
class HorvitzThompson(Weigher):
    """Importance over chance of presence, on deltas: unbiased, not convex.

    `known=False` estimates the chances from the rounds so far.
    """

    def __init__(self, p: np.ndarray, sizes: np.ndarray, presence: Presence, *, known: bool = True) -> None:
        super().__init__(p, sizes, presence)
        self.known, self.seen, self.rounds = known, np.zeros(len(p)), 0

    def weights(self, present: np.ndarray) -> Weights:
        rates = self.presence.rates if self.known else (self.seen + 1) / (self.rounds + 1)
        masses = self.p[present] / rates[present]
        return Weights(_convex(masses).mixing, float(masses.sum()))

    def update(self, present: np.ndarray) -> None:
        self.seen[present] += 1
        self.rounds += 1

    def state(self) -> dict[str, Any]:
        return {"seen": self.seen, "rounds": self.rounds}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.seen, self.rounds = np.array(state["seen"], dtype=np.float64), int(state["rounds"])


@WEIGHINGS.register("fedavot")
class FedAvot(Weigher):
    """Masked transport between presence and importance: convex, and unbiased when the law can deliver the importance.

    Source: Rahimi and Kalogerias 2025. A law that is written out is fitted once; `known=False`, or a law that can only
    be sampled, is learned online. `relax` below 1 trades bias for variance.
    """

    def __init__(
        self, p: np.ndarray, sizes: np.ndarray, presence: Presence, *, known: bool = True, relax: float = 1.0
    ) -> None:
        super().__init__(p, sizes, presence)
        self.avot = AvotWeights(p, relax)
        self.fitted = known and bool(presence.subsets)
        if self.fitted:
            self.avot.fit(presence.subsets, presence.q, strict=False)

    def weights(self, present: np.ndarray) -> Weights:
        return Weights(self.avot.weights(present))

    def update(self, present: np.ndarray) -> None:
        if not self.fitted:
            self.avot.update(present)

    def state(self) -> dict[str, Any]:
        return {} if self.fitted else {"seen": self.avot.theta, "rounds": self.avot.rounds}

    def restore(self, state: Mapping[str, Any]) -> None:
        if not self.fitted:
            self.avot.resume(np.array(state["seen"], dtype=np.float64), int(state["rounds"]))

    def facts(self) -> dict[str, Any]:
        if not self.fitted:
            return {"law": "unknown, learned online"}
        return {key: value for key, value in self.avot.report().items() if key != "phat"}
