"""The frontier of a dictionary.

Explained variance against active latents, for three widths; dictionaries of planted sparse features.
"""

import plotly.graph_objects as go

from featalign.bench.sae import planted
from featalign.dictionaries import train
from featalign.plots.style import CATEGORIES, styled

truth, activations = planted(48, 16, 4000, 2.0, noise=0.05)
figure = go.Figure()
for width, colour in zip((16, 32, 64), CATEGORIES):
    found = [train(activations, width=width, k=k, steps=150, seed=0).quality for k in (1, 2, 4)]
    figure.add_scatter(
        x=[quality.l0 for quality in found],
        y=[quality.explained_variance for quality in found],
        name=f"{width} latents",
        line={"color": colour},
    )
styled(figure, "48 features in 16 dimensions", "active latents per sample", "explained variance, held out")
