"""Rounds of federated learning under two aggregations.

Four clients with skewed labels and one start: averaged position by position, and matched first, then refitted.
"""

import plotly.graph_objects as go

import featalign as fa
from featalign.plots.style import FEATURE, NEURON, styled

digits = fa.data.load("digits")
split = fa.data.partition(digits.train_labels, "dirichlet", clients=4, alpha=0.3)
federation = fa.federated.Federation.of(digits, split)
figure = go.Figure()
aligned = ("ot-acts", {"refit": True})
for name, colour, fuse in (("FedAvg", NEURON, "vanilla"), ("aligned and refitted", FEATURE, aligned)):
    result = fa.federated.run(federation, rounds=3, fuse=fuse, progress=False)
    rounds = result.frames["rounds"]
    figure.add_scatter(x=rounds["round"], y=100 * rounds["value"], name=name, line={"color": colour})
styled(figure, "Digits over four skewed clients", "round", "test accuracy, %")
