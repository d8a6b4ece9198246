"""Outputs, metrics and ensembles of networks."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from featalign.clients import Ensemble, MLPConfig, build, evaluate, outputs
from featalign.data import Classification, Inputs, NextToken, Regression
from featalign.errors import BadOption, TaskError

X = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(50) % 3
A, B = (build(MLPConfig(6, (8,), 3, bias=True), seed) for seed in (0, 1))


def test_outputs_stream_without_gradients_and_leave_flags():
    module = nn.Sequential(A, nn.Dropout(0.5)).train()
    module[0].eval()
    found = outputs(module, Inputs.of(X, batch_size=7))
    assert torch.allclose(found, A(X), atol=1e-6) and not found.requires_grad
    assert module.training and module[1].training and not module[0].training
    assert torch.allclose(outputs(module, DataLoader(X, 9)), found, atol=1e-6)


def test_metrics_are_those_of_the_whole_however_it_is_cut():
    whole = evaluate(A, (X, Y))
    assert whole["accuracy"] == pytest.approx(float((A(X).argmax(1) == Y).double().mean()))
    assert whole["loss"] == pytest.approx(nn.functional.cross_entropy(A(X), Y).item(), rel=1e-6)
    for inputs in (Inputs.of(X, Y, batch_size=7), DataLoader(TensorDataset(X, Y), 9), {"inputs": X, "labels": Y}):
        assert evaluate(A, inputs) == pytest.approx(whole, rel=1e-6)
    assert evaluate(A, (X, A(X).detach()), "regression")["r2"] == 1.0
    with pytest.raises(TaskError, match="no targets"):
        evaluate(A, X)


def test_ensembles_combine_as_the_task_says():
    p = 0.25 * A(X).softmax(-1) + 0.75 * B(X).softmax(-1)
    ensemble = Ensemble([A, B], (0.25, 0.75), Classification())
    assert torch.allclose(ensemble(X).softmax(-1), p, atol=1e-6) and ensemble(X).dtype == torch.float32
    assert torch.allclose(ensemble(inputs=X).softmax(-1), p, atol=1e-6)
    for plain in (Ensemble([A, B], head="mean-logits"), Ensemble([A, B], task=Regression())):
        assert torch.allclose(plain(X), (A(X) + B(X)) / 2, atol=1e-6)
    sequences = torch.randn(2, 5, 6)
    heads = [nn.Linear(6, 4), nn.Linear(6, 4)]
    assert Ensemble(heads, task=NextToken())(sequences).shape == (2, 5, 4)
    assert evaluate(ensemble, (X, Y))["loss"] <= max(evaluate(A, (X, Y))["loss"], evaluate(B, (X, Y))["loss"])
    counts = torch.tensor([[1, 0, 1], [0, 1, 1]])
    weighed = Ensemble([A, B], task=Classification(), counts=counts)(X).softmax(-1)
    spoken = torch.stack([A(X).softmax(-1)[:, 0], B(X).softmax(-1)[:, 1]], 1)
    assert torch.allclose(weighed[:, :2] / weighed[:, :1], spoken / spoken[:, :1], rtol=1e-4)
    with pytest.raises(BadOption, match="1 weights for 2 networks"):
        Ensemble([A, B], (1.0,))
    with pytest.raises(BadOption, match="head 'median'"):
        Ensemble([A, B], head="median")
