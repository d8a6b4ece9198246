"""Tables in documents say what the files beside them hold."""

import json

import pandas as pd
import pytest

from featalign.bench.frontier import table
from featalign.bench.modes import tables
from tests.documents.given import ROOT

MODES = (
    (("digits, Dirichlet .1", "digits-dirichlet-0.1"),),
    (
        ("Dirichlet .1", "mnist-dirichlet-0.1"),
        ("Dirichlet .5", "mnist-dirichlet-0.5"),
        ("special label", "mnist-special-label"),
    ),
    (("CIFAR-10, Dirichlet .5", "cifar10-dirichlet-0.5"),),
    (("two editions, nats", "shakespeare-editions"),),
)  # heading of the columns, and file


@pytest.mark.parametrize("files", MODES)
def test_tables_of_federated_modes(files):
    folder = ROOT / "docs" / "results" / "modes"
    found = tables({title: pd.read_json(folder / f"{name}.json") for title, name in files})
    assert found.strip() in (ROOT / "docs" / "federated.md").read_text()


@pytest.mark.parametrize("name", ["digits", "mnist"])
def test_tables_of_the_frontier(name):
    found = json.loads((ROOT / "docs" / "results" / "frontier" / f"{name}.json").read_text())
    assert table(found).strip() in (ROOT / "docs" / "superposition.md").read_text()
