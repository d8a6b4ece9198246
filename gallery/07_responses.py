"""What a fused toy model still knows.

Two toy models store the same 16 features in 6 dimensions. Row i of each panel is what the fused model answers when only
feature i is on.
"""

import torch
from plotly.subplots import make_subplots

from featalign import fuse
from featalign.plots.style import DIVERGING, heatmap, styled
from featalign.studies import toy

names = ("vanilla", "procrustes", "feature-reencode")
found = toy.compare(n=16, m=6, seeds=1, steps=1200, sae_steps=600, methods=("vanilla",), progress=False)
problem = found.example["problem"]
figure = make_subplots(1, 3, subplot_titles=names)
for column, name in enumerate(names, start=1):
    with torch.no_grad():
        answers = fuse.solve(problem, name, repair=False).module(torch.eye(16)).numpy()
    figure.add_trace(heatmap(answers, -1, 1, colorscale=DIVERGING, showscale=False), 1, column)
figure.update_yaxes(autorange="reversed")
styled(figure, "Fused toy models, one feature at a time")
