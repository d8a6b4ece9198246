"""A permutation found, with its proof.

Correlations of the hidden units of a network and of a shuffled, noisy twin: in their own order, and matched.
"""

import torch
from plotly.subplots import make_subplots
from torch import nn

import featalign as fa
from featalign.plots.style import DIVERGING, heatmap, styled

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(10, 40), nn.ReLU())
inputs = torch.randn(500, 10)
first = model(inputs).detach()
second = first[:, torch.randperm(40)] + 0.3 * torch.randn(500, 40)

plan = fa.transport.solve(fa.transport.ground_cost("correlation", first, second))
correlation = fa.measure.correlation(first, second).numpy()
order = plan.pairs[plan.pairs[:, 0].argsort(), 1]

figure = make_subplots(1, 2, subplot_titles=("as they come", f"matched: gap {plan.gap:.0e}"))
for column, values in enumerate((correlation, correlation[:, order]), start=1):
    figure.add_trace(heatmap(values, -1, 1, colorscale=DIVERGING, showscale=column == 2), 1, column)
figure.update_yaxes(autorange="reversed")
styled(figure, "Units of a network and of its twin", "unit of B", "unit of A")
