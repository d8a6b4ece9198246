"""Matches against the truth: which latent is which feature is known here."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from featalign.align import Regime, match_features
from featalign.fuse import FusionProblem
from featalign.measure import correlation
from featalign.studies.toy.result import MatchRow

RECOVERED = 0.7  # correlation at which a latent counts as a true feature
SAME = 0.5  # correlation of two codes below which they are not the same feature


def matching(seed: int, problem: FusionProblem, masks: torch.Tensor, probe: torch.Tensor, verdict: Regime) -> MatchRow:
    """Matched latents of the second client and of the reference against the known features of the probe."""
    space = problem.graph.hidden[0].name
    bases = problem.dictionaries[space]
    sites = [graph[space].after for graph in problem.graphs]
    parts = zip(*([held[k][sites[k]] for k in (0, 1)] for _, held, _ in problem.activations))
    posts = [torch.cat(part) for part in parts]
    match = match_features(bases[1], bases[0], zip(posts[1].split(4096), posts[0].split(4096)), minimum=SAME)
    feature, scores = [], []
    for client in (1, 0):
        found = correlation(bases[client].encode(posts[client]), probe) * masks[client]
        feature.append(found.abs().argmax(1))
        rows, columns = linear_sum_assignment(-found.numpy())
        best = found[rows, columns][masks[client][torch.from_numpy(columns)]]
        scores.append((float(best.mean()), int((best > RECOVERED).sum())))
    first, second = feature[0][match.pairs[:, 0]], feature[1][match.pairs[:, 1]]
    same = first == second
    true_pairs = len(set(first[same].tolist()))
    return MatchRow(
        seed,
        verdict.neuron_correlation,
        float(match.scores.mean()) if len(match.scores) else 0.0,
        true_pairs,
        int((~same).sum()),
        float(same.double().mean()) if len(same) else 0.0,
        true_pairs / max(int((masks[0] & masks[1]).sum()), 1),
        float(np.mean([score for score, _ in scores])),
        float(np.mean([count for _, count in scores])),
    )
