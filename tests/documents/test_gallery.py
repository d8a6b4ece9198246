"""Every script of the gallery runs, is short, and gives a figure or a page; its thumbnail is there and small."""

import ast
import runpy
import warnings

import pytest

from tests.documents.given import ROOT

pytestmark = pytest.mark.long

SCRIPTS = sorted((ROOT / "gallery").glob("[0-9]*.py"))
LARGEST = 60_000  # bytes


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_it_runs_and_draws(script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        drawn = runpy.run_path(str(script))
    if "page" in drawn:
        assert drawn["page"].stat().st_size > 10_000
    else:
        traces = drawn["figure"].data
        assert traces and all(
            len(next(v for v in (getattr(t, axis, None) for axis in "yxz") if v is not None)) for t in traces
        )


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_it_is_short_and_has_a_caption_and_a_thumbnail(script):
    source = script.read_text()
    assert len(source.splitlines()) <= 50
    title, _, caption = ast.get_docstring(ast.parse(source)).partition("\n\n")
    assert title.endswith(".") and caption
    assert 0 < script.with_suffix(".webp").stat().st_size <= LARGEST


def test_there_are_twelve():
    assert len(SCRIPTS) >= 12
