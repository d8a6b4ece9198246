"""A shallower network is deepened without changing what it computes, and fuses with a deeper one."""

import copy
from itertools import pairwise

import torch
from torch import nn

from featalign import fuse
from featalign.clients import Cohort, build
from featalign.clients.families.decoder import DecoderConfig
from featalign.data import Inputs
from featalign.fuse import FusionProblem, solve
from featalign.spaces.capture import outputs_of
from featalign.spaces.check import output_change
from featalign.spaces.depth import deepened, equally_deep, stand_ins


def chain(*widths, kind=nn.ReLU, bias=True):
    parts = []
    for low, high in pairwise(widths):
        parts += [nn.Linear(low, high, bias=bias), kind()]
    return nn.Sequential(*parts[:-1]).eval()


def test_places_stand_for_those_at_the_same_relative_depth():
    assert stand_ins(2, 3) in ([0, 0, 1], [0, 1, 1]) and stand_ins(1, 3) == [0, 0, 0]
    for few in range(1, 5):
        for many in range(few, 9):
            found = stand_ins(few, many)
            assert found == sorted(found) and set(found) == set(range(few)), (few, many)


def test_chains_and_streams_take_layers_that_change_nothing():
    torch.manual_seed(0)
    x = torch.randn(50, 6)
    for bias in (True, False):
        shallow, deep = chain(6, 8, 4, bias=bias), chain(6, 9, 9, 9, 4, bias=bias)
        twin = deepened(shallow, deep, Inputs.of(x).example())
        assert len(twin) == len(deep) and output_change(outputs_of(shallow, x), outputs_of(twin, x)) < 1e-5
    tokens = torch.randint(11, (20, 8))
    few, many = (
        build(DecoderConfig(vocabulary=11, context=8, width=8, hidden=12, heads=2, depth=d), 0) for d in (2, 3)
    )
    twin = deepened(few, many, Inputs.of(tokens).example())
    assert output_change(outputs_of(few, tokens), outputs_of(twin, tokens)) < 1e-5


def test_what_cannot_be_deepened_stays_as_it_is():
    x = torch.randn(50, 6)
    shallow, deep = chain(6, 8, 4, kind=nn.Tanh), chain(6, 8, 8, 4, kind=nn.Tanh)
    assert equally_deep([shallow, deep], Inputs.of(x).example()) == [shallow, deep]


def test_fused_with_its_own_deeper_twin_a_network_comes_back():
    torch.manual_seed(0)
    x = torch.randn(200, 6)
    shallow = chain(6, 8, 4)
    deep = deepened(shallow, chain(6, 8, 8, 4), Inputs.of(x).example())
    problem = FusionProblem(Cohort.of([shallow, copy.deepcopy(deep)], x, task="regression"))
    assert "as deep as the deepest" in problem.cohort.notes[-1]
    for method in ("ot-acts", "zip"):
        found = solve(problem, method, refit=True).module
        assert output_change(outputs_of(shallow, x), outputs_of(found, x)) < 1e-3, method
    assert len(fuse([deep, shallow], x, "zip", task="regression").module) == len(deep)
