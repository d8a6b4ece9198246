"""What each way of fusing costs.

Two classifiers from different seeds, fused by three methods, before and after the closed-form refit.
"""

import torch
from torch import nn

import featalign as fa

torch.manual_seed(0)
inputs = torch.randn(600, 20)
labels = (inputs[:, :4] + 0.5 * inputs[:, 4:8] ** 2).argmax(1)


def trained(seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(120):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(inputs[:300]), labels[:300]).backward()
        optimiser.step()
    return model


result = fa.compare(
    [trained(1), trained(2)],
    probe=inputs[:300],
    evaluate=(inputs[300:], labels[300:]),
    methods=("vanilla", "ot-acts", "zip"),
    progress=False,
)
figure = result.figures["scores"]
