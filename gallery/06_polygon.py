"""Features that share two dimensions.

Five sparse features in a plane settle on a pentagon.
"""

from featalign import toy
from featalign.plots.toy import polygon

models = toy.train(toy.ToyConfig(5, 2), toy.Features.uniform(5, 0.05), (0,), toy.Schedule(1500, 256, 1e-2))
figure = polygon(toy.Geometry.of(models))
