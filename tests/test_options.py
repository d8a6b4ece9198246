"""Options by annotation: strict types in one line, TOML that always reads back, signatures as options."""

import math
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featalign import options
from featalign.errors import BadOption, CorruptFile
from featalign.studies.compare.config import RunConfig

if TYPE_CHECKING:
    from nowhere import Something


@dataclass(frozen=True)
class Settings:
    name: str
    count: int = 3
    rate: float = 0.5
    on: bool = False
    widths: tuple[int, ...] = ()
    pair: tuple[int, float] = (1, 1.0)
    mixing: float | None = None
    basis: Literal["neuron", "feature"] = "neuron"
    budget: float = math.inf
    out: Path | None = None

    def __post_init__(self):
        options.check(self)


def method(
    problem,
    rate=1,
    *,
    units: "str" = "neurons",
    k: "int | None" = None,
    center: bool = False,
    ridge: "float" = 1e-2,
    widths: "tuple[int, ...]" = (),
    what: "Something" = None,
    free: Any = 0,
): ...


@pytest.mark.parametrize(
    "name, value, wanted",
    [
        ("count", "3", "a whole number"), ("count", 3.0, "a whole number"), ("count", True, "a whole number"),
        ("count", None, "a whole number"), ("count", [3], "a whole number"), ("rate", "x", "a number"),
        ("rate", math.nan, "finite"), ("rate", math.inf, "finite"), ("rate", 10**400, "a number"),
        ("rate", True, "a number"), ("budget", -math.inf, "finite"), ("on", 1, "true or false"),
        ("on", "yes", "true or false"), ("widths", 3, "a list"), ("widths", [3.5], "a whole number"),
        ("widths", "64", "a list"), ("pair", [1], "a list of 2"), ("pair", [1, math.inf], "a list of 2"),
        ("mixing", "0.5", "a number or none"), ("basis", "pool", "'neuron' or 'feature'"), ("name", 3, "text"),
        ("out", 3, "a path or none"), ("name", {"a\nb": "x" * 1000}, "text"),
    ],
)  # fmt: skip
def test_wrong_types_are_one_line(name, value, wanted):
    with pytest.raises(BadOption) as caught:
        options.read(Settings, {"name": "me", name: value}, "'run.toml'")
    text = str(caught.value)
    assert text.startswith((f"'run.toml': {name} = ", f"{name} = ")) and wanted in text
    assert len(text.splitlines()) == 1 and len(text) < 200


def test_right_types_are_converted():
    found = options.read(Settings, {"name": "me", "rate": 1, "widths": [3, 4], "pair": [2, 3], "mixing": 1, "out": "a"})
    assert found.rate == 1.0 and type(found.rate) is float and type(found.mixing) is float
    assert found.widths == (3, 4) and found.pair == (2, 3.0) and found.out == Path("a") and found.budget == math.inf
    assert Settings("me", count=np.int64(4), rate=np.float32(0.5)).count == 4


def test_unknown_and_missing_keys_are_named():
    with pytest.raises(BadOption, match=r"'run.toml': no option 'coutn', did you mean 'count'\? options: basis, "):
        options.read(Settings, {"name": "me", "coutn": 3}, "'run.toml'")
    with pytest.raises(BadOption, match="option 'name' is missing; give text"):
        options.read(Settings, {})


text = st.text(st.characters(exclude_categories=["Cs"]))
scalars = st.one_of(
    text, st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False, allow_infinity=False), st.booleans()
)
values = st.one_of(scalars, st.lists(scalars, max_size=3))


@given(st.dictionaries(text, st.one_of(values, st.dictionaries(text, values, max_size=3)), max_size=4))
def test_toml_reads_back(content):
    assert tomllib.loads(options.to_toml(content)) == content


@pytest.mark.parametrize("value", [math.nan, math.inf, [1.0, math.nan], object(), "\ud800"])
def test_what_toml_cannot_hold_is_refused(value):
    with pytest.raises(BadOption, match="x = "):
        options.to_toml({"x": value})


def test_options_of_a_signature():
    found = options.options_of(method)
    assert found["units"] == (str, "neurons") and found["k"] == (int | None, None) and found["what"][0] is Any
    assert list(found) == ["units", "k", "center", "ridge", "widths", "what", "free"]


def test_binding_from_the_command_line():
    given = {"units": "heads", "k": "3", "center": "yes", "ridge": "1e-3", "widths": "64, 32", "free": "x"}
    found = options.bind_options(method, given, "method 'zip'", text=True)
    assert found == {"units": "heads", "k": 3, "center": True, "ridge": 1e-3, "widths": (64, 32), "free": "x"}
    assert options.bind_options(method, {"k": "none"}, "method 'zip'", text=True) == {"k": None}


@pytest.mark.parametrize(
    "given, message",
    [
        ({"unit": "x"}, r"method 'zip': no option 'unit', did you mean 'units'\? options: center, free, k, ridge"),
        ({"rate": 2}, "method 'zip': no option 'rate'"),
        ({"k": "3"}, "method 'zip': k = '3'; give a whole number or none"),
        ({"ridge": float("nan")}, "method 'zip': ridge = nan; give a finite number"),
        ({"center": 1}, "method 'zip': center = 1; give true or false"),
    ],
)
def test_binding_refuses(given, message):
    with pytest.raises(BadOption, match=message):
        options.bind_options(method, given, "method 'zip'")


@pytest.mark.parametrize("given", [{"k": "three"}, {"center": "perhaps"}, {"ridge": "inf"}, {"widths": "64,x"}])
def test_words_that_do_not_convert(given):
    with pytest.raises(BadOption, match="method 'zip': "):
        options.bind_options(method, given, "method 'zip'", text=True)


def test_required_options_and_none():
    def needs(problem, *, rank: int): ...

    with pytest.raises(BadOption, match="option 'rank' is missing; give a whole number"):
        options.bind_options(needs, {}, "matcher 'low'")
    with pytest.raises(BadOption, match="no option 'a'; it has none"):
        options.bind_options(lambda problem: 0, {"a": 1}, "method 'vanilla'")


@pytest.mark.parametrize(
    "line, message",
    [
        ('seeds = "3"', "seeds = '3'; give a whole number"), ("model_options = 3", "model_options = 3; give a table"),
        ('alpha = "x"', "alpha = 'x'; give a number"), ("k = 1e9", "k = 1000000000.0"), ("ridge = inf", "finite"),
        ("ridge = nan", "finite"), ("ridge = 0.0", "above 0"), ("mixing = 2", "between 0 and 1"),
        ("clients = true", "a whole number"), ("seed = 3", r"did you mean 'seeds'\?"), ("curve = -1", "at least 0"),
        ("alpha = 0", "above 0"), ("class_counts = 1", "true or false"), ("methods = 'zip'", "a list"),
    ],
)  # fmt: skip
def test_a_run_configuration_names_what_is_wrong(line, message, tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(line + "\n", encoding="utf-8")
    with pytest.raises(BadOption, match=message) as caught:
        RunConfig.from_toml(path)
    assert len(str(caught.value).splitlines()) == 1


@given(text)
def test_a_run_configuration_reads_back(folder):
    config = RunConfig(folder=folder, model_options={"hidden": [3, 4]}, mixing=0.25)
    assert options.read(RunConfig, tomllib.loads(config.to_toml())) == config


def test_damaged_configurations(tmp_path):
    with pytest.raises(BadOption, match="no configuration"):
        RunConfig.from_toml(tmp_path)
    (tmp_path / "a.toml").write_bytes(b"folder = '\xff'")
    with pytest.raises(CorruptFile, match="UTF-8"):
        RunConfig.from_toml(tmp_path / "a.toml")
    (tmp_path / "a.toml").write_text("folder = ")
    with pytest.raises(CorruptFile, match="not valid TOML"):
        RunConfig.from_toml(tmp_path / "a.toml")
