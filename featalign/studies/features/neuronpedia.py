"""Feature cards in the JSON that SAEDashboard writes for Neuronpedia: one batch of features in a file.

Field names are those of `NeuronpediaDashboardBatch` and `NeuronpediaDashboardFeature` of the package `sae-dashboard`;
what has no counterpart here (neuron alignment, correlated neurons) is an empty list.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from featalign import storage
from featalign.errors import BadOption
from featalign.studies.features.cards import Contexts, FeatureCards
from featalign.studies.features.effects import logits_of
from featalign.studies.features.running import bin_edges

FACTS = ("model_id", "layer", "sae_set", "sae_id_suffix", "dataset")
EMPTY = (
    *("neuron_alignment_indices", "neuron_alignment_values", "neuron_alignment_l1"),
    *("correlated_neurons_indices", "correlated_neurons_pearson", "correlated_neurons_l1"),
    *("correlated_features_pearson", "correlated_features_l1"),
    *("logits_hist_data_bar_heights", "logits_hist_data_bar_values", "decoder_weights_dist"),
)


def to_neuronpedia(cards: FeatureCards, path: Path | str, vectors: bool = False, **facts: Any) -> Path:
    """Write all latents that fire as a batch of features in the JSON that SAEDashboard writes for Neuronpedia.

    Args:
        vectors: whether to write the atoms.
        facts: model_id, layer, sae_set, sae_id_suffix and dataset; read off the network and the site where not given.

    Raises `BadOption` for other facts, and for cards of inputs that are no tokens.
    """
    if unknown := set(facts) - set(FACTS):
        raise BadOption(f"'{min(unknown)}' is no fact of the export; choices: {', '.join(FACTS)}")
    if not cards.top.tokens.shape[2]:
        raise BadOption("the export is of features of language models; these cards are of inputs that are no tokens")
    return storage.write_json(path, batch(cards, vectors, **facts))


def batch(cards: FeatureCards, vectors: bool = False, **facts: Any) -> dict[str, Any]:
    """The batch as plain data."""
    site = str(cards.source.site.module)
    number = re.search(r"\.(\d+)\.", f".{site}.")
    config = getattr(cards.source.module, "cfg", None)
    tokens = cards.source.inputs.example(1).tokens
    head = {
        "model_id": str(getattr(config, "model_name", None) or type(cards.source.module).__name__),
        "layer": int(number[1]) if number else 0,
        "sae_set": site,
        "sae_id_suffix": None,
        "dataset": "",
        "n_prompts_total": cards.inputs,
        "n_tokens_in_prompt": 0 if tokens is None else tokens.shape[1],
    }
    return {**head, **facts, "features": [_feature(cards, j, vectors) for j in cards.alive.tolist()]}


def _feature(cards: FeatureCards, j: int, vectors: bool) -> dict[str, Any]:
    edges, counts = bin_edges(), cards.histogram[j]
    filled = torch.nonzero(counts).flatten()
    cells = range(int(filled[0]), int(filled[-1]) + 1)
    effect = {"raised": [], "lowered": []} if cards.effect is None else logits_of(cards.effect, j, cards.token)
    near = [index for index in cards.neighbours[j].tolist() if index >= 0]
    found: dict[str, Any] = {name: [] for name in EMPTY}
    found |= {
        "feature_index": j,
        "frac_nonzero": float(cards.density[j]),
        "freq_hist_data_bar_values": [float((edges[k] * edges[k + 1]).sqrt()) for k in cells],
        "freq_hist_data_bar_heights": [int(counts[k]) for k in cells],
        "pos_str": [name for name, _ in effect["raised"]],
        "pos_values": [value for _, value in effect["raised"]],
        "neg_str": [name for name, _ in effect["lowered"]],
        "neg_values": [value for _, value in effect["lowered"]],
        "correlated_features_indices": near,
        "activations": [*_activations(cards, cards.top, j, True), *_activations(cards, cards.lower, j, False)],
    }
    return found | ({"vector": cards.atoms[j].tolist()} if vectors else {})


def _activations(cards: FeatureCards, found: Contexts, j: int, top: bool) -> list[dict[str, Any]]:
    """Contexts as tokens with values; the bin is that of the strongest ones, or of those drawn at random."""
    values = [value for value in found.value[j].tolist() if value > float("-inf")]
    share = len(values) / max(1, int(cards.counts[j])) if top else 1.0
    rows = []
    for k, _ in enumerate(values):
        tokens, acts = found.tokens[j, k], found.acts[j, k]
        inside = torch.nonzero(tokens >= 0).flatten()
        low, high = int(inside[0]), int(inside[-1]) + 1
        rows.append({
            "bin_min": min(values), "bin_max": max(values), "bin_contains": min(1.0, share),
            "tokens": [cards.token(t) for t in tokens[low:high].tolist()],
            "values": [round(v, 5) for v in acts[low:high].nan_to_num(0).tolist()],
            "qualifying_token_index": cards.half - low,
        })  # fmt: skip
    return rows
