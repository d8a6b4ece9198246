"""What travels between server and clients, named by kind and counted in bytes. Inputs and labels are no kind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from featalign.dictionaries.dictionary import Dictionary

State = dict[str, torch.Tensor]
KINDS = {
    "weights": "parameters and buffers of the network",
    "control": "SCAFFOLD's control variates",
    "moments": "Gram matrices of what layers read; in calibration, of what the readout reads beside the labels",
    "dictionaries": "sparse dictionaries of hidden spaces",
    "statistics": "numbers: samples, loss, steps, seconds",
}


@dataclass(frozen=True)
class Order:
    """What the server asks of a client in a round.

    Attributes:
        round, client: which round (from 1), whom.
        weights: of the server's network; empty where the client starts from an initialisation of its own.
        control: SCAFFOLD's server variate, where there is one.
        init_seed, order_seed: of a start of its own, and of the order of samples.
        wants: kinds to send back besides weights and statistics.
        train: whether to train; otherwise these are the weights of a network to be calibrated (`calibrate.py`).
        peers, share: of a calibration whose moments travel masked (`sums.py`): everybody in the sum, own weight in it.
    """

    round: int
    client: str
    weights: State
    control: State = field(default_factory=dict)
    init_seed: int = 0
    order_seed: int = 0
    wants: tuple[str, ...] = ()
    train: bool = True
    peers: tuple[str, ...] = ()
    share: float = 1.0

    def bytes(self) -> dict[str, int]:
        """By kind, of what goes down."""
        return sizes_of({"weights": self.weights, "control": self.control})


@dataclass(frozen=True)
class Report:
    """What a client sends back.

    Attributes:
        round, client: which order it answers.
        weights: after training.
        control: change of SCAFFOLD's client variate.
        moments: per affine layer, the mean Gram matrix `[n, n]` of its inputs (ones appended where it has a bias).
        dictionaries: by hidden space.
        statistics: samples, loss, steps, seconds.
    """

    round: int
    client: str
    weights: State
    control: State = field(default_factory=dict)
    moments: State = field(default_factory=dict)
    dictionaries: Mapping[str, Dictionary] = field(default_factory=dict)
    statistics: Mapping[str, float] = field(default_factory=dict)

    def bytes(self) -> dict[str, int]:
        """By kind, of what goes up."""
        atoms = {
            f"{space} {name}": tensor
            for space, found in self.dictionaries.items()
            for name, tensor in found.tensors.items()
        }
        found = sizes_of(
            {"weights": self.weights, "control": self.control, "moments": self.moments, "dictionaries": atoms}
        )
        return {**found, "statistics": 8 * len(self.statistics)}


@dataclass(frozen=True)
class Failure:
    """A client that did not answer, and why."""

    round: int
    client: str
    reason: str
    error: Exception | None = None


def sizes_of(parts: Mapping[str, Mapping[str, torch.Tensor]]) -> dict[str, int]:
    """Bytes by kind; kinds of which nothing is sent are left out."""
    return {kind: sum(tensor.nbytes for tensor in part.values()) for kind, part in parts.items() if part}
