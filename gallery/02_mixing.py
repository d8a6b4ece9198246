"""Along the line between two networks.

Loss at every mixing weight, by the basis in which the second network was moved before averaging.
"""

import plotly.graph_objects as go
import torch
from torch import nn

import featalign as fa
from featalign.plots.style import CATEGORIES, styled

torch.manual_seed(0)
inputs = torch.randn(500, 12)
targets = torch.sin(2 * inputs[:, :3]) + inputs[:, 3:6] ** 2 / 2


def trained(seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(12, 48), nn.ReLU(), nn.Linear(48, 3))
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(300):
        optimiser.zero_grad()
        (model(inputs) - targets).pow(2).mean().backward()
        optimiser.step()
    return model


cohort = fa.clients.Cohort.of([trained(1), trained(2)], probe=inputs, evaluate=(inputs, targets))
shares = [step / 10 for step in range(11)]
figure = go.Figure()
for name, colour in zip(("vanilla", "ot-acts", "weight-matching"), CATEGORIES):
    losses = []
    for share in shares:
        problem = fa.fuse.FusionProblem(cohort, mixing=(share, 1 - share))
        fused = fa.fuse.solve(problem, name).module
        losses.append((fused(inputs) - targets).pow(2).mean().item())
    figure.add_scatter(x=shares, y=losses, name=name, line={"color": colour})
styled(figure, "Loss between two regressors", "weight of the first", "squared error")
