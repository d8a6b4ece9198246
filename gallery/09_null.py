"""Which matches are real.

Two clients share 60 % of their latents. Correlations of the pairs of the best plan, true ones apart from false ones,
and the price that the null puts on a match.
"""

import plotly.graph_objects as go

from featalign.bench.latents import planted_latents
from featalign.plots.style import FEATURE, NEURON, styled
from featalign.transport import ground_cost, null_threshold, solve

first, second, twin = planted_latents(300, samples=600)
cost = ground_cost("correlation", first, second)
price = null_threshold(cost.null(seed=0))
pairs = solve(cost).pairs
correlations = 1 - cost.dense()[pairs[:, 0], pairs[:, 1]]
real = twin[pairs[:, 0]] == pairs[:, 1]
figure = go.Figure()
figure.add_histogram(x=correlations[real], name="true pairs", marker={"color": FEATURE}, nbinsx=40)
figure.add_histogram(x=correlations[~real], name="false pairs", marker={"color": NEURON}, nbinsx=40)
figure.add_vline(x=1 - price, line_dash="dash", annotation_text="null")
figure.update_layout(barmode="overlay")
styled(figure, "Pairs of a plan that must match everything", "correlation", "pairs")
