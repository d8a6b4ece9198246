"""Data sets, partitions between clients and probe sets.

>>> from featalign import data
>>> digits = data.load("digits")                       # or mnist, fashion-mnist, cifar10: fetched once, then cached
>>> split = data.partition(digits.train_labels, "special-label", clients=2, special=4, seed=0)
>>> split.table()                                      # label counts per client
>>> mine = digits.train_inputs[split.indices[0]]       # client A's samples
>>> x = data.probe(digits, 400, seed=0)                # unlabelled inputs to compare clients on
>>> more = data.augment(x, 10_000, recipe="shift-mix") # synthetic ones made from them

`data.describe()` lists the data sets, `data.fetch(name, folder)` brings one into the cache. Inputs are float32,
standardised pixels except for digits in [0, 1] (`dataset.pixels` undoes it); standard splits are kept. A new data set,
scheme or recipe is one entry of `datasets`, `schemes`, `recipes`.

`Inputs` reads whatever a user calls a probe; a `Task` says what a network is for (loss, metrics, ensemble, readout).
"""

from featalign.data.batch import Batch, unwrap
from featalign.data.datasets import Dataset, Entry, datasets, describe, load
from featalign.data.fetch import fetch
from featalign.data.inputs import Inputs
from featalign.data.partition import Partition, check_scheme, client_names, partition, schemes
from featalign.data.probe import augment, check_probe, check_recipe, probe, recipes
from featalign.data.task import TASKS, Metric, Scores, Task, task_of
from featalign.data.tasks import Classification, MultiLabel, NextToken, Regression

__all__ = [
    "TASKS",
    "Batch",
    "Classification",
    "Dataset",
    "Entry",
    "Inputs",
    "Metric",
    "MultiLabel",
    "NextToken",
    "Partition",
    "Regression",
    "Scores",
    "Task",
    "augment",
    "check_probe",
    "check_recipe",
    "check_scheme",
    "client_names",
    "datasets",
    "describe",
    "fetch",
    "load",
    "partition",
    "probe",
    "recipes",
    "schemes",
    "task_of",
    "unwrap",
]
