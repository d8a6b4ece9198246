"""Rounds of federated learning under two aggregations.

Four clients with skewed labels, from independent starts: averaging position by position, and matched first.
"""

import plotly.graph_objects as go

import featalign as fa
from featalign.plots.style import FEATURE, NEURON, styled

digits = fa.data.load("digits")
split = fa.data.partition(digits.train_labels, "dirichlet", clients=4, alpha=0.3)
federation = fa.federated.Federation.of(digits, split)
figure = go.Figure()
for name, colour, fuse in (("vanilla", NEURON, "vanilla"), ("ot-acts", FEATURE, "ot-acts")):
    result = fa.federated.run(federation, rounds=3, fuse=fuse, start="independent", progress=False)
    rounds = result.frames["rounds"]
    figure.add_scatter(x=rounds["round"], y=100 * rounds["value"], name=name, line={"color": colour})
styled(figure, "Digits over four skewed clients", "round", "test accuracy, %")
