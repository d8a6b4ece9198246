"""Superposition as a phase change.

Two features in one dimension: whether the second is dropped, superposed or takes the dimension, over density and
relative importance (Elhage et al. 2022).
"""

import numpy as np

from featalign import toy
from featalign.plots.toy import phase_map

densities = tuple(np.geomspace(1.0, 0.01, 8).round(4).tolist())
importances = tuple(np.geomspace(0.1, 10.0, 8).round(4).tolist())
diagram = toy.phase_diagram(densities, importances, seeds=2, schedule=toy.Schedule(400, 128, 2e-2))
figure = phase_map(diagram)
