"""What one repetition of a comparison leaves behind: scores, curves, and per space the evidence that explains them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from featalign.align.feature import FeatureMatch, match_features
from featalign.align.regime import regime
from featalign.clients.client import Client
from featalign.clients.evaluation import evaluate
from featalign.config import mixing_weights
from featalign.dictionaries.basis import NeuronBasis
from featalign.dictionaries.dictionary import Dictionary
from featalign.errors import BadOption
from featalign.fuse.problem import FusionProblem
from featalign.fuse.result import FusionResult, ledger
from featalign.measure import class_profile, class_selectivity, effective_features_per_unit
from featalign.spaces.capture import collect
from featalign.spaces.graph import Space

EXAMPLES = 4000  # evaluation inputs looked through for the page's examples
SHOWN_PAIRS, SHOWN_UNMATCHED, SHOWN_INPUTS = 60, 24, 6


@dataclass
class Trial:
    """One repetition: clients, evaluation data, and everything measured on them."""

    seed: int
    names: list[str]
    clients: tuple[nn.Module, ...]
    inputs: torch.Tensor
    labels: torch.Tensor
    class_counts: torch.Tensor | None = None
    members: Sequence[Client] = ()
    class_names: list[str] = field(default_factory=list)
    partition: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    curves: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    results: dict[str, FusionResult] = field(default_factory=dict)
    spaces: dict[str, SpaceEvidence] = field(default_factory=dict)
    problem: FusionProblem | None = None
    dictionaries: dict[str, tuple[Dictionary, ...]] = field(default_factory=dict)
    transcoders: dict[str, tuple[Dictionary, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.inputs) != len(self.labels) or len(self.inputs) == 0:
            raise BadOption(f"evaluate=(inputs, labels): {len(self.inputs)} inputs and {len(self.labels)} labels")
        if not self.class_names:
            self.class_names = [str(label) for label in range(int(self.labels.max()) + 1)]

    def accuracy(self, module: nn.Module) -> float:
        """Share of evaluation inputs whose largest output is the label."""
        return evaluate(module, (self.inputs, self.labels))["accuracy"]

    def score(self, name: str, module: nn.Module, seconds: float = 0.0) -> None:
        """Record a row of the table."""
        self.scores[name] = {"accuracy": self.accuracy(module), "seconds": seconds}

    def curve(self, name: str, make: Callable[[FusionProblem], FusionResult], points: int) -> None:
        """Record accuracy along the mixing weight of the first client, ends included."""
        assert self.problem is not None
        grid = np.linspace(0, 1, points).round(4).tolist()
        mixed = [self.problem.mixed(mixing_weights(weight, len(self.clients))) for weight in grid]
        self.curves[name] = {"mixing": grid, "accuracy": [self.accuracy(make(problem).module) for problem in mixed]}


@dataclass
class SpaceEvidence:
    """A hidden space seen in both bases, for the first client against the reference.

    `neuron` and `feature` are matches by the same procedure, same inputs and same kind of null: the neuron one uses the
    identity dictionary.
    """

    space: Space
    neuron: FeatureMatch
    feature: FeatureMatch
    regime: dict[str, Any]
    ledger: dict[str, dict[str, float]]
    polysemanticity: list[dict[str, Any]]
    browser: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for results.json; the browser's examples stay out."""
        return {
            "size": self.space.size,
            "symmetry": str(self.space.symmetry),
            "neuron": self.neuron.to_dict(),
            "feature": self.feature.to_dict(),
            "regime": self.regime,
            "ledger": self.ledger,
            "polysemanticity": self.polysemanticity,
        }


def diagnose_spaces(trial: Trial) -> dict[str, SpaceEvidence]:
    """Evidence for every hidden space of the pair (first client, reference); empty for a single client."""
    problem = trial.problem
    assert problem is not None
    if len(trial.clients) < 2:
        return {}
    ledgers = {
        name: ledger(problem, result.alignments)
        for name, result in trial.results.items()
        if not result.refitted and result.method != "zip"
    }
    sites = [site for space in problem.graph.hidden for site in (space.before, space.after)]
    order = torch.randperm(len(trial.inputs), generator=torch.Generator().manual_seed(trial.seed))[:EXAMPLES]
    inputs, labels = trial.inputs[order], trial.labels[order]
    pair = (0, problem.reference)
    held = {k: collect(trial.clients[k], inputs, list(dict.fromkeys(sites))) for k in pair}
    found = {}
    for space in problem.graph.hidden:
        bases = trial.dictionaries[space.name]
        post = space.after
        seen = [(acts[pair[0]][post], acts[pair[1]][post]) for _, acts, _ in problem.activations()]
        sizes = [problem.graphs[k][space.name].size for k in pair]
        neuron = match_features(NeuronBasis(sizes[0]), NeuronBasis(sizes[1]), seen)
        feature = problem.memory.matches.get((0, space.name)) or match_features(bases[pair[0]], bases[pair[1]], seen)
        positions = len(held[pair[0]][post]) // len(labels)  # of a convolution or a sequence; one otherwise
        rows = torch.arange(0, len(held[pair[0]][post]), max(1, positions // 4))
        on_examples = [held[k][post][rows] for k in pair]
        codes = [bases[k].encode(acts) for k, acts in zip(pair, on_examples)]
        row_labels, row_order = labels[rows // positions], order[rows // positions]
        probed = [torch.cat([batch[side] for batch in seen])[:EXAMPLES] for side in (0, 1)]
        diagnosis = regime(probed[0], probed[1], bases[pair[0]], bases[pair[1]], space.symmetry)
        found[space.name] = SpaceEvidence(
            space, neuron, feature, diagnosis.to_dict(),
            {name: entry[space.name] for name, entry in ledgers.items()},
            [
                _polysemanticity(trial.names[k], on_examples[side], codes[side], bases[k], row_labels)
                for side, k in enumerate(pair)
            ],
            _browser(feature, codes, row_labels, row_order, len(trial.class_names)),
        )  # fmt: skip
    return found


def _polysemanticity(
    client: str, activations: torch.Tensor, codes: torch.Tensor, basis: Dictionary, labels: torch.Tensor
) -> dict[str, Any]:
    """Effective number of features per unit and class selectivity of units and of latents, with a null."""
    effective = effective_features_per_unit(codes, basis.atoms)
    shuffled = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    return {
        "client": client,
        "effective_features": _summary(effective),
        "unit_selectivity": _summary(class_selectivity(activations, labels)),
        "latent_selectivity": _summary(class_selectivity(codes, labels)),
        "unit_selectivity_null": _summary(class_selectivity(activations, shuffled)),
        "latent_selectivity_null": _summary(class_selectivity(codes, shuffled)),
    }


def _summary(values: Any) -> dict[str, Any]:
    """Mean, quartiles and count of the finite entries of a measure."""
    values = np.asarray(values, dtype=float).ravel()
    values = values[np.isfinite(values)]
    if len(values) == 0:
        return {"mean": None, "quartiles": [None] * 3, "count": 0}
    return {"mean": values.mean(), "quartiles": np.quantile(values, [0.25, 0.5, 0.75]).tolist(), "count": len(values)}


def _browser(
    match: FeatureMatch, codes: Sequence[torch.Tensor], labels: torch.Tensor, order: torch.Tensor, classes: int
) -> dict[str, Any]:
    """What the aligned-feature browser shows: matched pairs and unmatched latents with their inputs and profiles."""
    profiles = [np.asarray(class_profile(code, labels, classes)) for code in codes]
    top = [code.topk(min(SHOWN_INPUTS, len(code)), dim=0).indices.T for code in codes]

    def latent(side: int, index: int) -> dict[str, Any]:
        values = codes[side][:, index]
        best = top[side][index][values[top[side][index]] > 0]
        return {
            "latent": int(index),
            "inputs": order[best].tolist(),
            "values": values[best].tolist(),
            "profile": profiles[side][index].round(4).tolist(),
            "density": float((values > 0).float().mean()),
        }

    shared = match.scores * np.sqrt(match.energy[0][match.pairs[:, 0]] * match.energy[1][match.pairs[:, 1]])
    pairs = []
    for row in np.argsort(-shared)[:SHOWN_PAIRS]:
        i, j = match.pairs[row]
        rivals = np.delete(match.correlation[i], j)
        pairs.append(
            {
                "a": latent(0, i),
                "b": latent(1, j),
                "score": float(match.scores[row]),
                "gain": float(match.gains[row]),
                "next_best": float(rivals.max()) if len(rivals) else 0.0,
                "energy": float(shared[row]),
            }
        )
    unmatched = []
    for side in (0, 1):
        free = np.setdiff1d(np.flatnonzero(match.energy[side] > 0), match.pairs[:, side])
        strongest = free[np.argsort(-match.energy[side][free])][:SHOWN_UNMATCHED]
        best = match.correlation.max(axis=1 - side)
        unmatched.append([{**latent(side, int(i)), "best": float(best[i])} for i in strongest])
    return {"pairs": pairs, "unmatched": unmatched}
