"""By how much each client is heard in a readout target, told from what all of them answer on the probe.

Without labels or label counts, two things can be read off the answers. *Which classes a client knows*: on how many
inputs it gives the answer that all of them give together, class by class (as workers are weighed by their agreement
with the consensus, Dawid and Skene 1979). *How far the energies of different networks may be compared*: a client that
was trained on one class can be sure of everything; its energy then says nothing about the input, and is tempered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch

SWEEPS = 10  # of the estimate of what clients know; it is settled after two or three
HALVINGS = 40


@dataclass(frozen=True)
class Voices:
    """By how much each client is heard.

    Attributes:
        counts: `[clients, classes]`, what each client speaks for a class with, relative to the others: label counts
            that the server knows, or `competence`. None where all speak alike.
        temper: exponent between 0 and 1 on how well a client says it knows an input; 0 does not ask for that.
    """

    counts: torch.Tensor | None = None
    temper: float = 1.0

    def of(self, clients: Sequence[int]) -> Voices:
        """Those of some of the clients."""
        return self if self.counts is None else Voices(self.counts[list(clients)], self.temper)


def heard(logits: torch.Tensor, counts: torch.Tensor | None = None) -> Voices:
    """Voices from logits `[clients, rows, classes]` on the probe; known label counts take the place of competence."""
    if len(logits) == 1:
        return Voices(counts)
    centred = logits.double() - logits.double().mean(-1, keepdim=True)
    answers = centred.argmax(-1)
    same = [float((one == other).double().mean()) for one, other in combinations(answers, 2)]
    temper = tempered(centred.logsumexp(-1), 1 + sum(same) / len(same))
    return Voices(competence(centred.softmax(-1)) if counts is None else counts, temper)


def competence(answers: torch.Tensor) -> torch.Tensor:
    """`[clients, classes]`: expected inputs of a class on which a client says what all say together.

    `answers [clients, rows, classes]` are probabilities. All together say `q(y) ~ sum_k n_k(y) p_k(y)`, columns of `n`
    adding to one, and `n_k(y) = sum_x q(y|x) p_k(y|x)`, from the clients' own answers on.
    """
    known = answers.sum(1)
    for _ in range(SWEEPS):
        shares = known / known.sum(0).clamp_min(1e-300)
        together = torch.einsum("kc,knc->nc", shares, answers)
        together = together / together.sum(-1, keepdim=True).clamp_min(1e-300)
        known = torch.einsum("nc,knc->kc", together, answers)
    return known


def tempered(energies: torch.Tensor, most: float) -> float:
    """The largest `t <= 1` for which no client speaks for more than `most / clients` of the inputs, softly counted.

    `energies [clients, rows]`; client `k` speaks for an input with `softmax_k(t E_k)`.
    """

    def loudest(temper: float) -> float:
        return float((temper * energies).softmax(0).mean(1).max()) * len(energies)

    if loudest(1.0) <= most:
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if loudest(middle) <= most else (low, middle)
    return low
