"""Reductions of linear spaces: what comes back, what changes where the joint space is too wide, what is refused."""

import pytest
import torch
from torch import nn

from featalign.bench.repack import NETWORKS, ROWS, repack
from featalign.clients.cohort import Cohort
from featalign.errors import BadOption, UnknownName
from featalign.fuse import FusionProblem, solve
from featalign.fuse import linear as reductions


def coder(seed, n=12, m=4):
    """A linear bottleneck with a ReLU behind the decoder."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(n, m, bias=False), nn.Linear(m, n), nn.ReLU()).eval()


def sparse(samples=600, n=12):
    draw = torch.Generator().manual_seed(0)
    return torch.rand(samples, n, generator=draw) * (torch.rand(samples, n, generator=draw) < 0.15)


def pair(*modules):
    inputs = sparse()
    return FusionProblem(Cohort.of(modules, inputs, (inputs, inputs), "regression"))


def output(module, inputs):
    with torch.no_grad():
        return module(inputs)


@pytest.mark.parametrize("linear", reductions.REDUCTIONS.names())
@pytest.mark.parametrize("refit", [False, True])
def test_a_space_that_fits_the_fused_width_is_exact(linear, refit):
    module, inputs = coder(0), sparse()
    found = solve(pair(module, coder(0)), "zip", refit=refit, linear=linear).module
    assert torch.allclose(output(found, inputs), output(module, inputs), atol=1e-4)


@pytest.fixture
def trained(monkeypatch):
    """Dictionaries of few steps, in the order in which they were trained."""
    found, whole = [], reductions.train
    monkeypatch.setattr(
        reductions, "train", lambda *rows, **options: found.append(whole(*rows, **options, steps=30)) or found[-1]
    )
    return found


def test_features_that_do_not_fit_are_laid_out_anew_and_the_refit_aims_at_their_code(trained):
    problem, inputs = pair(coder(0), coder(1)), sparse()
    one, other = (solve(problem, "zip", refit=True, linear=name) for name in ("project", "repack"))
    assert len(trained) == 1 and trained[0].W_dec.shape[1] == 8
    assert torch.isfinite(output(other.module, inputs)).all()
    assert not torch.allclose(output(one.module, inputs), output(other.module, inputs), atol=1e-2)
    (fit, *_) = other.fits
    assert fit.layer == "0" and fit.explained_after >= fit.explained_before  # though it reads the inputs


def test_a_packed_code_grows_with_its_row(trained, monkeypatch):
    rows = torch.nn.functional.normalize(torch.randn(120, 6, generator=torch.Generator().manual_seed(0)), dim=1)
    monkeypatch.setattr(reductions, "LATENTS", 2)
    found = reductions.Packed.of(rows, 3, seed=0)
    assert torch.allclose(found(5 * rows), 5 * found(rows), rtol=1e-3, atol=1e-3)


def test_other_reductions_are_refused():
    with pytest.raises(UnknownName, match="repack"):
        solve(pair(coder(0), coder(1)), "zip", linear="fold")


def test_the_bench_prints_the_regime_beside_every_row(monkeypatch):
    monkeypatch.setitem(NETWORKS._entries, "tiny", lambda width, seed, steps, progress: pair(coder(0), coder(0)).cohort)
    rows = repack(["tiny"], [4], seeds=1, progress=False)
    assert {row.row for row in rows} == set(ROWS)
    assert {row.regime for row in rows} == {"permutation"} and min(row.linear for row in rows) > 0.99
    assert all(abs(row.excess) < 1e-4 for row in rows if row.row in ("projection", "repack", "procrustes"))
    with pytest.raises(BadOption, match="at least 1"):
        repack(["tiny"], [4], seeds=0)
