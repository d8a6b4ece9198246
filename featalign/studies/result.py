"""The base of every study's result: declared tidy frames, arrays, configuration and facts, saved and loaded alike.

A frame is declared by a dataclass, one field per column; the file format and its published JSON schema follow from it.

>>> @study("dice")
... class DiceResult(StudyResult):
...     rows: ClassVar = {"throws": Throw}       # Throw: a dataclass, one field per column
...     config_type: ClassVar = DiceConfig       # a dataclass of options
...     def to_frame(self): ...
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import json
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar

import numpy as np
import pandas as pd

from featalign import options, storage
from featalign.errors import BadOption, CorruptFile
from featalign.registry import Registry

if TYPE_CHECKING:
    import plotly.graph_objects as go

SCHEMA = 2
CONFIG, RESULTS, ARRAYS, WIDGETS, PAGE = (
    "config.toml", "results.json", "arrays.safetensors", "widgets.json", "report.html",
)  # fmt: skip
_DTYPES = {int: "int64", float: "float64", str: "object", bool: "bool"}
_JSON = {int: "integer", float: "number", str: "string", bool: "boolean"}
STUDIES: Registry[type[StudyResult]] = Registry("study")
T = TypeVar("T", bound="type[StudyResult]")


@typing.dataclass_transform()
def study(kind: str) -> Callable[[T], T]:
    """Register a result, made a dataclass, under the kind that its run folders name.

    `load` imports `featalign.studies.<kind>.result` for kinds that are not registered yet.
    """

    def file(result: T) -> T:
        result.kind = kind
        STUDIES.register(kind)(dataclass(repr=False, eq=False)(result))
        return result

    return file


@dataclass(repr=False, eq=False)
class StudyResult:
    """What a study found.

    Attributes:
        config: what was asked for, an instance of `config_type`.
        frames: by the names in `rows`, with the columns and types declared there.
        facts: plain values that are no table: versions, notes, sizes.
        arrays: what figures need and no table holds.
        widgets: plain data of the page's interactive parts.
        folder: where it was saved or loaded from.
        split: whether `save` puts what the feature browser shows into files beside the page, so that the page of some
            ten thousand features stays small.
    """

    kind: ClassVar[str] = ""
    rows: ClassVar[Mapping[str, type]] = {}
    config_type: ClassVar[type]

    config: Any
    frames: dict[str, pd.DataFrame]
    facts: dict[str, Any] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    widgets: dict[str, Any] = field(default_factory=dict)
    folder: Path | None = None
    split: bool = False

    def __post_init__(self) -> None:
        for name, row in self.rows.items():
            self.frames[name] = framed(self.frames.get(name, ()), row)

    def to_frame(self) -> pd.DataFrame:
        """The headline table; the first frame unless the study says more."""
        return self.frames[next(iter(self.rows))]

    def neighbour(self, name: str) -> Any:
        """The module beside the one that defines the result: `page` and `figures` read results, never the reverse."""
        return importlib.import_module(f"{type(self).__module__.rpartition('.')[0]}.{name}")

    @property
    def figures(self) -> dict[str, go.Figure]:
        """The figures of the page, by name."""
        return {}

    def page(self) -> str:
        """The page as self-contained HTML text, which `save` writes as `report.html`."""
        raise NotImplementedError

    def browser(self) -> Any:
        """The page's feature browser for a notebook (anywidget); raises `BadOption` for results without features."""
        from featalign.report.widget import feature_browser

        if "browser" not in self.widgets:
            raise BadOption(f"this result of '{self.kind}' has no features to browse")
        return feature_browser(self.widgets["browser"])

    def save(self, folder: Path | str, overwrite: bool = False) -> Path:
        """Write the run folder, page included; it appears when complete. `load` reads it back.

        Raises `FolderExists` for a folder that holds anything (with `overwrite`, anything but a run).
        """
        with storage.atomic_folder(folder, overwrite, kind=self.kind) as temporary:
            self.write(temporary)
        self.folder = Path(folder)
        return self.folder

    def write(self, folder: Path) -> None:
        """Write every file into a folder that exists; a study adds its own."""
        import torch

        from featalign.report.page import write_page

        storage.write_bytes(folder / CONFIG, self.config_text().encode("utf-8"))
        storage.write_bytes(folder / RESULTS, self.to_json().encode("ascii"))
        if self.arrays:
            tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in self.arrays.items()}
            storage.save_tensors(folder / ARRAYS, tensors)
        if self.widgets:
            storage.write_json(folder / WIDGETS, self.widgets)
        write_page(folder / PAGE, self._split_page(folder) if self.split else self.page())

    def _split_page(self, folder: Path) -> str:
        """The page whose widgets read files beside it, which are written."""
        from featalign.report.pack import split

        whole = self.widgets
        self.widgets = {
            name: split(content, folder, f"report-{name}") if "shards" in content else content
            for name, content in whole.items()
        }
        try:
            return self.page()
        finally:
            self.widgets = whole

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The result that `write` wrote; raises `CorruptFile` in one line for files of another form."""
        content = storage.read_json(folder / RESULTS)
        frames = {name: framed(records, cls.rows[name]) for name, records in _frames(content, cls, folder).items()}
        try:
            config = cls.read_config(content.get("config", {}), f"'{folder / RESULTS}'")
        except BadOption as error:
            raise CorruptFile(str(error)) from error
        arrays = storage.load_tensors(folder / ARRAYS) if (folder / ARRAYS).exists() else {}
        widgets = storage.read_json(folder / WIDGETS) if (folder / WIDGETS).exists() else {}
        plain = {name: tensor.numpy() for name, tensor in arrays.items()}
        return cls(config, frames, content.get("facts", {}), plain, widgets, folder)

    @classmethod
    def read_config(cls, values: Mapping[str, Any], where: str) -> Any:
        """The configuration from plain values; raises `BadOption`."""
        return options.read(cls.config_type, values, where)

    def config_text(self) -> str:
        """The configuration as TOML, from which the run can be repeated."""
        return options.to_toml(config_dict(self.config))

    def to_dict(self) -> dict[str, Any]:
        """The content of results.json."""
        frames = {name: _records(frame) for name, frame in self.frames.items() if name in self.rows}
        head = {"schema": SCHEMA, "study": self.kind, "config": config_dict(self.config), "facts": self.facts}
        return {**storage.plain(head), "frames": frames}

    def to_json(self) -> str:
        """The text of results.json, one line per record."""
        content = self.to_dict()
        frames = [
            f"    {json.dumps(name)}: [\n" + ",\n".join(f"      {_line(record)}" for record in records) + "\n    ]"
            for name, records in content.pop("frames").items()
        ]
        head = json.dumps(content, indent=2, allow_nan=False)
        return head[:-2] + ',\n  "frames": {\n' + ",\n".join(frames) + "\n  }\n}\n"

    def __repr__(self) -> str:
        return f"{self._title()}\n{self.to_frame().to_string(max_rows=40)}"

    def _repr_html_(self) -> str:
        from html import escape

        return f"<p>{escape(self._title())}</p>{self.to_frame().to_html(max_rows=40)}"

    def _title(self) -> str:
        where = f", {self.folder}" if self.folder is not None else ""
        return f"{self.kind}{where}"


def load(folder: Path | str) -> Any:
    """What a run folder holds: the result of a study, or a fused network.

    Raises `CorruptFile` with the path for a folder that holds none, or files of another version.
    """
    folder = Path(folder)
    if not (folder / RESULTS).is_file():
        importlib.import_module("featalign.fuse.result")  # it registers how fused networks are read
        return storage.load(folder)
    content = storage.read_json(folder / RESULTS)
    kind = content.get("study") if isinstance(content, dict) else None
    if not isinstance(kind, str):
        raise CorruptFile(f"'{folder}' holds no result of this version (schema {SCHEMA}); run it again")
    return result_class(kind).read(folder)


def result_class(kind: str) -> type[StudyResult]:
    """The class of a registered study; those that come along are imported when they are asked for."""
    name = f"featalign.studies.{kind}"
    if kind not in STUDIES and re.fullmatch(r"[a-z][a-z_]*", kind) and importlib.util.find_spec(name) is not None:
        importlib.import_module(f"{name}.result")
    return STUDIES[kind]


def framed(rows: Iterable[Any], row: type) -> pd.DataFrame:
    """Rows (instances of the dataclass `row`, mappings or a frame) as a frame with its columns, order and types.

    Missing optional columns are filled; raises `CorruptFile` for columns that are missing, unknown or of another type.
    """
    columns = columns_of(row)
    if not isinstance(rows, pd.DataFrame):
        found = [_plain_row(each) for each in rows]
        names = list(dict.fromkeys(name for each in found for name in each)) if found else list(columns)
        cells = {name: pd.Series([each.get(name) for each in found], dtype=object) for name in names}
        rows = pd.DataFrame(cells, columns=names)
    unknown = [str(name) for name in rows.columns if name not in columns]
    missing = [name for name, (_, optional) in columns.items() if name not in rows.columns and not optional]
    if unknown or missing:
        what = f"no column '{missing[0]}'" if missing else f"column '{unknown[0]}', which it does not have"
        raise CorruptFile(f"frame of {row.__name__}: {what}; columns: {', '.join(columns)}")
    typed = {}
    for name, (kind, optional) in columns.items():
        values = rows[name] if name in rows.columns else pd.Series([None] * len(rows), index=rows.index, dtype=object)
        try:
            typed[name] = _typed(values, kind, optional)
        except (TypeError, ValueError) as error:
            raise CorruptFile(f"frame of {row.__name__}: column '{name}' holds no {_JSON[kind]}s ({error})") from error
    return pd.DataFrame(typed, columns=list(columns)).reset_index(drop=True)


def columns_of(row: type) -> dict[str, tuple[type, bool]]:
    """`{column: (type, whether it may be empty)}` of a dataclass."""
    hints = typing.get_type_hints(row)
    found = {}
    for item in dataclasses.fields(row):
        hint = hints[item.name]
        parts = [part for part in typing.get_args(hint) if part is not type(None)]
        optional = isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
        found[item.name] = (parts[0] if optional else hint, optional)
    return found


def statistics(values: Any) -> tuple[float, float, int]:
    """Mean, standard deviation over seeds (n - 1; 0 for one seed) and number of the finite values."""
    values = np.asarray(values, dtype=float)
    values = values[np.isfinite(values)]
    if len(values) == 0:
        return float("nan"), float("nan"), 0
    return float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else 0.0, len(values)


def over_seeds(frame: pd.DataFrame, by: Sequence[str], value: str = "value") -> pd.DataFrame:
    """Mean, std (`statistics`) and count of `value` for every combination of `by`, in order of appearance."""
    rows: list[tuple[Any, ...]] = []
    for key, group in frame.groupby(list(by), sort=False, dropna=False):
        rows.append((*key, *statistics(group[value])))  # type: ignore[misc]
    return pd.DataFrame(rows, columns=[*by, "mean", "std", "count"])


def records(frame: pd.DataFrame) -> list[Any]:
    """The rows of a frame, each with its columns as attributes."""
    return list(frame.itertuples(index=False))


def with_spread(mean: str, std: str, count: int) -> str:
    """`91.2 ± 0.4`, or the mean alone where there is one seed."""
    return f"{mean} ± {std}" if count > 1 else mean


def config_dict(config: Any) -> dict[str, Any]:
    """The fields of a configuration as plain values."""
    return {item.name: storage.plain(getattr(config, item.name)) for item in dataclasses.fields(config)}


def schema(kind: str) -> dict[str, Any]:
    """The JSON schema of a study's results.json, from the dataclasses of its rows and of its configuration."""
    result = result_class(kind)
    frames = {
        name: {
            "type": "array",
            "description": _summary(row),
            "items": {
                "type": "object",
                "properties": _properties(row),
                "required": [column for column, (_, optional) in columns_of(row).items() if not optional],
                "additionalProperties": False,
            },
        }
        for name, row in result.rows.items()
    }
    names = [item.name for item in dataclasses.fields(result.config_type)]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"results.json of featalign {kind}",
        "type": "object",
        "properties": {
            "schema": {"const": SCHEMA},
            "study": {"const": kind},
            "config": {"type": "object", "properties": {n: _described(result.config_type, n) for n in names}},
            "facts": {"type": "object", "description": "plain values that are no table: versions, notes, sizes"},
            "frames": {"type": "object", "properties": frames, "required": list(frames)},
        },
        "required": ["schema", "study", "config", "facts", "frames"],
    }


def _properties(row: type) -> dict[str, Any]:
    found = {}
    for name, (kind, optional) in columns_of(row).items():
        # a number that is not finite is written as null
        empty = optional or kind is float
        found[name] = {"type": [_JSON[kind], "null"] if empty else _JSON[kind], **_described(row, name)}
    return found


def _described(kind: type, name: str) -> dict[str, str]:
    """The words of a field in the `Attributes:` part of a docstring, the class's own or one it inherits from."""
    names = "|".join(item.name for item in dataclasses.fields(kind))
    entry = rf"(?:{names})(?:, (?:{names}))*: "
    for part in kind.__mro__:
        text = " ".join((part.__doc__ or "").partition("Attributes:")[2].split())
        for match in re.finditer(rf"({entry})(.*?)(?= {entry}|$)", text):
            if name in match[1].rstrip(": ").split(", "):
                return {"description": match[2].strip()}
    return {}


def _summary(kind: type) -> str:
    return (kind.__doc__ or "").strip().splitlines()[0]


def _frames(content: Any, cls: type[StudyResult], folder: Path) -> dict[str, Any]:
    """The records of every frame of a results.json, or `CorruptFile`."""
    path = folder / RESULTS
    if not isinstance(content, dict) or content.get("schema") != SCHEMA or content.get("study") != cls.kind:
        raise CorruptFile(f"'{path}' is no result of '{cls.kind}' in schema {SCHEMA}; run it again")
    frames = content.get("frames")
    if not isinstance(frames, dict) or set(frames) != set(cls.rows):
        raise CorruptFile(f"'{path}' must hold the frames {', '.join(cls.rows)}")
    for name, records in frames.items():
        if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
            raise CorruptFile(f"'{path}': frame '{name}' is no list of records")
    return frames


def _plain_row(row: Any) -> dict[str, Any]:
    return dict(row) if isinstance(row, Mapping) else {f.name: getattr(row, f.name) for f in dataclasses.fields(row)}


def _typed(values: pd.Series, kind: type, optional: bool) -> pd.Series:
    if kind is str:
        wrong = [value for value in values if not isinstance(value, str) and not (optional and pd.isna(value))]
        if wrong:
            raise ValueError(f"{str(wrong[0])[:40]!r}")
        return pd.Series([None if pd.isna(v) else _unicode(v) for v in values], index=values.index, dtype=object)
    if kind is float:
        return pd.to_numeric(values).astype("float64")
    if kind is bool and not all(isinstance(value, (bool, np.bool_)) for value in values):
        raise ValueError("give true or false")
    dtype: Any = "Int64" if optional and kind is int else _DTYPES[kind]
    return (values if kind is bool else pd.to_numeric(values)).astype(dtype)


def _unicode(text: str) -> str:
    """The text with half a surrogate pair, which no table or page can hold, written as its escape."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    columns = {
        str(name): [None if pd.isna(value) else value for value in frame[name].tolist()] for name in frame.columns
    }
    return [storage.plain(dict(zip(columns, values))) for values in zip(*columns.values())]


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, allow_nan=False)
