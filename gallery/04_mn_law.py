"""A linear map between two superposed codes explains m/n.

32 sparse features in m dimensions, two seeds: how much of one code the best linear map of the other explains.
"""

import plotly.graph_objects as go
import torch

from featalign import toy
from featalign.plots.style import FEATURE, REFERENCE, styled

features, widths = 32, (4, 8, 16, 24, 32)
law = toy.Features.uniform(features, 0.04)
inputs = law.sample(4000, torch.Generator().manual_seed(1))
explained = []
for width in widths:
    models = toy.train(toy.ToyConfig(features, width), law, (0, 1), toy.Schedule(1200, 256, 1e-2))
    first, second = models.hidden(inputs).double()
    found = torch.linalg.lstsq(first[:2000], second[:2000]).solution
    error = (second[2000:] - first[2000:] @ found).pow(2).sum()
    explained.append(float(1 - error / (second[2000:] - second[2000:].mean(0)).pow(2).sum()))

shares = [width / features for width in widths]
figure = go.Figure()
figure.add_scatter(x=[0, 1], y=[0, 1], name="m/n", line={"color": REFERENCE, "dash": "dash"})
figure.add_scatter(x=shares, y=explained, name="best linear map", mode="markers", marker={"color": FEATURE, "size": 11})
styled(figure, "What a linear map explains", "m/n", "explained variance, held out")
