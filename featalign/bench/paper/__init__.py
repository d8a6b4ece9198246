"""OTFusion's experiments (Singh and Jaggi 2020), each one command with our methods beside the published value.

>>> from featalign.bench.paper import EXPERIMENTS, Lab, run
>>> run("transfer", Lab("mnist"), seeds=5, out="results").to_frame()

A new experiment is one decorated function in one file.
"""

from featalign.bench.paper import many, matching, pruning, training, transfer, widths
from featalign.bench.paper.lab import Lab
from featalign.bench.paper.registry import EXPERIMENTS, Experiment, experiment, run, save
from featalign.bench.paper.rows import PaperResult, Published, Row

__all__ = [
    "EXPERIMENTS",
    "Experiment",
    "Lab",
    "PaperResult",
    "Published",
    "Row",
    "experiment",
    "many",
    "matching",
    "pruning",
    "run",
    "save",
    "training",
    "transfer",
    "widths",
]
