"""A fusion method, a family, a task, a dictionary architecture and a figure, each one piece of a file from outside."""

import pytest

from featalign.studies.compare.config import RunConfig, method_options
from featalign.studies.compare.run import run


@pytest.fixture
def outside():
    """Registers what `outside.py` holds, and takes it back."""
    import sys

    from featalign.align import MATCHERS
    from featalign.clients import models
    from featalign.data.task import TASKS
    from featalign.dictionaries.architectures import ARCHITECTURES
    from featalign.fuse import METHODS
    from featalign.studies.compare.figures import FIGURES

    registries = (MATCHERS, METHODS, models, TASKS, ARCHITECTURES, FIGURES)
    before = [dict(registry._entries) for registry in registries]
    import tests.compare.outside  # noqa: F401

    yield
    for registry, entries in zip(registries, before):
        registry._entries = entries
    sys.modules.pop("tests.compare.outside")


def test_compare_runs_with_one_of_each_from_outside(outside, tmp_path):
    config = RunConfig(
        seeds=1, epochs=2, probe=60, augment="none", curve=0, methods=("reversed", "feature-project"),
        options=method_options(["reversed.shift=1"]), model="outside", model_options={"width": 10}, task="hinge",
        architecture="twice",
    )  # fmt: skip
    result = run(config, tmp_path / "run", progress=False)
    frame = result.to_frame()
    assert result.metric.label == "margin loss, points" and result.facts["task"] == "hinge"
    assert (
        frame.loc["reversed(shift=1)", "margin loss"] > 0 and result.trials[0].cohort.modules[0][0].out_features == 10
    )
    assert set(result.frames["dictionaries"]["architecture"]) == {"twice"}
    page = result.page().partition("<body>")[2]
    assert "seconds" in result.figures and ">Seconds</h2>" in page
    assert "Units in reverse order" in page and "margin loss, points" in page
