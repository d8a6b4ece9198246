"""The base of every study's result: frames as declared, files that read back, published schemas, damaged files."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import featalign as fa
from featalign.errors import BadOption, CorruptFile
from featalign.studies.result import (
    STUDIES,
    StudyResult,
    framed,
    over_seeds,
    result_class,
    schema,
    statistics,
    study,
    with_spread,
)  # fmt: skip

SCHEMAS = Path(__file__).parents[2] / "docs" / "schemas"


@dataclass(frozen=True)
class Throw:
    """A throw.

    Attributes:
        seed, who: of the throw.
        pips: what came, or nothing.
        share: of all.
        fair: whether it was.
    """

    seed: int
    who: str
    pips: int | None
    share: float
    fair: bool = True
    note: str | None = None


@dataclass(frozen=True)
class DiceConfig:
    """Options of dice.

    Attributes:
        faces: of a die.
    """

    faces: int = 6
    bias: float | None = None


@study("dice")
class Dice(StudyResult):
    rows: ClassVar = {"throws": Throw, "rest": Throw}
    config_type: ClassVar = DiceConfig

    def page(self) -> str:
        return "<!doctype html>é"


throws = st.builds(
    Throw, st.integers(0, 9), st.text(st.characters(exclude_categories=["Cs"])), st.none() | st.integers(1, 6),
    st.floats(allow_nan=False, allow_infinity=False), st.booleans(), st.none() | st.just("x"),
)  # fmt: skip


@settings(deadline=None, max_examples=30)
@given(st.lists(throws, max_size=5))
def test_what_is_saved_reads_back(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("dice") / "run"
    arrays = {"fc1/x": np.arange(3.0)} if rows else {}
    result = Dice(DiceConfig(bias=0.5), {"throws": rows}, {"n": 1}, arrays, {"w": [1]})
    result.save(folder)
    again = fa.load(folder)
    assert (
        type(again) is Dice
        and again.config == result.config
        and again.facts == {"n": 1}
        and again.widgets == {"w": [1]}
    )
    for name, frame in result.frames.items():
        assert again.frames[name].equals(frame) and again.frames[name].dtypes.equals(frame.dtypes)
    assert all(np.array_equal(again.arrays[name], array) for name, array in arrays.items())
    assert again.to_json() == result.to_json()
    assert (folder / "report.html").read_text(encoding="utf-8") == result.page()


def test_numbers_that_are_not_finite_come_back_as_nan(tmp_path):
    rows = [Throw(0, "a", None, float("nan")), Throw(0, "b", 3, float("inf"))]
    Dice(DiceConfig(), {"throws": rows}).save(tmp_path / "run")
    assert fa.load(tmp_path / "run").frames["throws"]["share"].isna().all()


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: c.update(schema=1), "schema 2"),
        (lambda c: c["frames"].pop("rest"), "must hold the frames"),
        (lambda c: c["frames"]["throws"][0].pop("who"), "no column 'who'|'who' holds no strings"),
        (lambda c: c["frames"]["throws"][0].update(extra=1), "'extra'"),
        (lambda c: c["frames"]["throws"][0].update(share="much"), "'share' holds no numbers"),
        (lambda c: c["frames"]["throws"][0].update(who=3), "'who' holds no strings"),
        (lambda c: c["frames"].update(throws=7), "list of records"),
        (lambda c: c["config"].update(faces="six"), "faces"),
        (lambda c: c.pop("study"), "no result of this version"),
    ],
)
def test_damaged_results_are_named_in_one_line(tmp_path, change, message):
    folder = Dice(DiceConfig(), {"throws": [Throw(0, "a", 1, 0.5)]}).save(tmp_path / "run")
    content = json.loads((folder / "results.json").read_text())
    change(content)
    (folder / "results.json").write_text(json.dumps(content))
    with pytest.raises(CorruptFile, match=message) as caught:
        fa.load(folder)
    assert len(str(caught.value).splitlines()) == 1


def test_standard_deviation_has_one_definition():
    frame = framed(
        [Throw(s, who, 1, v) for who, vs in (("a", (1, 2, 4)), ("b", (3,))) for s, v in enumerate(vs)], Throw
    )
    found = over_seeds(frame, ["who"], "share").set_index("who")
    assert found.loc["a", "std"] == pytest.approx(np.std([1, 2, 4], ddof=1)) and found.loc["b", "std"] == 0
    assert statistics([2.0])[1:] == (0.0, 1) and np.isnan(statistics([])[0])
    assert with_spread("3", "0", 1) == "3" and with_spread("3", "1", 2) == "3 ± 1"


def test_schema_follows_from_the_dataclasses():
    throw = schema("dice")["properties"]["frames"]["properties"]["throws"]["items"]
    assert throw["properties"]["pips"] == {"type": ["integer", "null"], "description": "what came, or nothing."}
    assert throw["properties"]["who"]["description"] == "of the throw."
    assert throw["required"] == ["seed", "who", "share", "fair"]


@pytest.mark.parametrize("path", sorted(SCHEMAS.glob("*.json")), ids=lambda path: path.stem)
def test_published_schemas_are_current(path):
    """`python -c "import featalign.studies as s, json; print(json.dumps(s.schema('KIND'), indent=2))"` writes them."""
    assert json.loads(path.read_text()) == json.loads(json.dumps(schema(path.stem)))


def test_every_study_that_comes_along_is_published():
    import pkgutil

    import featalign.studies

    (folder,) = featalign.studies.__path__
    kinds = [
        module.name for module in pkgutil.iter_modules([folder]) if (Path(folder) / module.name / "result.py").is_file()
    ]
    for kind in kinds:
        result_class(kind)
    assert kinds and set(kinds) == {path.stem for path in SCHEMAS.glob("*.json")} and set(kinds) <= set(STUDIES)


def test_what_a_browser_shows_can_lie_beside_the_page(tmp_path):
    content = {"shards": ["abc", "def"], "strings": [""]}
    result = Dice(DiceConfig(), {}, widgets={"browser": content, "w": [1]}, split=True)
    result.save(tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run" / "report-browser").iterdir()) == ["0.js", "1.js"]
    assert result.widgets["browser"] == content and fa.load(tmp_path / "run").widgets["browser"] == content
    with pytest.raises(BadOption, match="no features to browse"):
        Dice(DiceConfig(), {}).browser()
