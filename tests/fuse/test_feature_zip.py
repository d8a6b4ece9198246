"""Pools of transcoder features: any chain of layers takes them, or is told why not."""

from dataclasses import replace

import pytest
import torch

import featalign as fa
from featalign.dictionaries import train
from featalign.errors import DictionaryError
from featalign.fuse import solve

from .conftest import network, problem_of
from .modules import shaken


@pytest.mark.parametrize("name", ["pooled-logits", "conv"])
def test_layers_that_read_patches_or_pooled_positions_take_features(name):
    x = torch.randn(200, 12, generator=torch.Generator().manual_seed(0))
    problem = problem_of([shaken(name, seed=0), shaken(name, seed=1)], x)
    (space,) = problem.graph.hidden
    pre = torch.randn(400, space.size, generator=torch.Generator().manual_seed(1))
    found = tuple(train(pre, 4 * space.size, "transcoder", steps=10, seed=seed) for seed in (0, 1))
    result = solve(replace(problem, transcoders={space.name: found}), "feature-zip")
    assert torch.isfinite(result.module(x)).all()


def test_a_probe_too_small_for_a_wide_layer_ends_the_method_and_not_the_run():
    x = torch.randn(12, 12, generator=torch.Generator().manual_seed(0))
    wide = [network((12, 40, 5), seed=seed) for seed in (0, 1)]
    result = fa.compare(wide, x, (x, torch.arange(12) % 5), curve=0, progress=False, evidence=False)
    frame = result.to_frame()
    assert {"vanilla", "ot-acts", "zip"} <= set(frame.index) and "feature-zip+refit" not in frame.index
    methods = {row.method: row for row in result.frames["methods"].itertuples()}
    assert "12 samples cannot support a dictionary" in methods["feature-zip"].reason
    with pytest.raises(DictionaryError, match="12 samples"):
        fa.fuse.fuse(wide, x, "feature-zip", task="classification")
