"""What became of the clients' features: all kept in a twin, lost where half of the units are silent."""

from __future__ import annotations

import copy

import torch

from featalign.clients import Cohort
from featalign.dictionaries import NeuronBasis
from featalign.fuse import FusionProblem, solve
from featalign.fuse.fates import FATES, fates

from .conftest import network, permuted


def asked(clients, fused, probe):
    problem = FusionProblem(Cohort.of(clients, probe, task="classification"))
    bases = {space.name: (NeuronBasis(space.size),) * len(clients) for space in problem.graph.hidden}
    return {(found.space, found.client): found for found in fates(problem, fused, bases)}


def test_a_network_fused_with_its_twin_merges_every_feature(probe):
    module = network((12, 8, 6, 5), bias=True)
    clients = [permuted(module), module]
    problem = FusionProblem(Cohort.of(clients, probe, task="classification"))
    fused = solve(problem, "ot-acts").module
    for found in asked(clients, fused, probe).values():
        counts = found.counts()
        assert counts["merged"] == sum(counts.values()) == len(found.latents) > 0
        assert float(found.recovered.min()) > 0.99 and found.threshold >= 0.5


def test_features_of_a_client_that_was_left_out_are_lost(probe):
    wide, other = network((12, 20, 5), bias=True), network((12, 20, 5), bias=True, seed=4)
    silent = copy.deepcopy(wide)
    with torch.no_grad():
        silent[0].weight[4:] = 0.0
    found = asked([other, wide], silent, probe)
    left_out, own = found["0", 0].counts(), found["0", 1].counts()
    assert set(left_out) == set(FATES)
    assert own["kept"] + own["merged"] >= 4 and own["lost"] > 0
    assert left_out["lost"] > left_out["kept"] + left_out["merged"]


def test_what_another_latent_tells_is_absorbed(probe):
    """A dictionary that holds a unit twice, once upside down: the second copy never fires, and is told by the first."""
    module = network((12, 6, 5), bias=True)
    found = asked([module, copy.deepcopy(module)], module, probe)["0", 0]
    assert found.counts()["lost"] == 0
