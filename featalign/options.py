"""Options by their annotations: read from TOML, Python or the command line, checked strictly, written as TOML.

The fields of a dataclass and the keyword-only parameters of a function are options alike. Every error is a `BadOption`
in one line with the option's name, its value and what it takes.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

from featalign.errors import BadOption

T = TypeVar("T")
REQUIRED = inspect.Parameter.empty
_WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}
_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\b": "\\b", "\f": "\\f"}


def read(kind: type[T], values: Mapping[str, Any], where: str = "") -> T:
    """An instance of a dataclass from a mapping, such as a parsed TOML file; `where` begins every message.

    Raises `BadOption` for unknown keys, with the nearest known one, missing ones and values of another type.
    """
    hints = typing.get_type_hints(kind)
    known = {field.name: field for field in dataclasses.fields(kind) if field.init}  # type: ignore[arg-type]
    _refuse_unknown(values, known, where)
    missing = dataclasses.MISSING
    for name, field in known.items():
        if name not in values and field.default is missing and field.default_factory is missing:
            raise BadOption(f"{_prefix(where)}option '{name}' is missing; give {describe(hints[name])}")
    return kind(**{name: convert(value, hints[name], name, where) for name, value in values.items()})


def check(options: Any) -> None:
    """Check every field of a dataclass against its annotation, for `__post_init__`; lists become tuples, 1 becomes 1.0.

    Raises `BadOption`.
    """
    hints = typing.get_type_hints(type(options))
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        object.__setattr__(options, field.name, convert(value, hints[field.name], field.name, default=field.default))


def options_of(function: Callable[..., Any]) -> dict[str, tuple[Any, Any]]:
    """`{name: (type, default)}` of the keyword-only parameters; the default of a required one is `REQUIRED`."""
    inner = inspect.unwrap(function)
    found = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY:
            found[name] = (_hint(parameter.annotation, inner), parameter.default)
    return found


def bind_options(
    function: Callable[..., Any], values: Mapping[str, Any], what: str, text: bool = False
) -> dict[str, Any]:
    """Options for `function(..., **options)` from a mapping, checked against its keyword-only parameters.

    Args:
        what: who takes the options, as in "method 'zip'".
        text: values are words of a command line and are converted by annotation: `3`, `0.5`, `yes`, `none`, `64,32`.

    Raises `BadOption` for an unknown option, with the known ones, a missing one, or a value of another type.
    """
    known = options_of(function)
    _refuse_unknown(values, known, what)
    for name, (hint, default) in known.items():
        if default is REQUIRED and name not in values:
            raise BadOption(f"{what}: option '{name}' is missing; give {describe(hint)}")
    return {
        name: convert(value, known[name][0], name, what, known[name][1], text and isinstance(value, str))
        for name, value in values.items()
    }


def convert(
    value: Any, hint: Any, name: str, where: str = "", default: Any = dataclasses.MISSING, text: bool = False
) -> Any:
    """`value` as its annotation wants it, or `BadOption`.

    A whole number passes as a float and a list as a tuple; a bool is no number, NaN is refused, infinity too unless it
    is the default.
    """
    found = _convert(value, hint, text)
    if found is _NO:
        raise BadOption(f"{_prefix(where)}{name} = {_shown(value)}; give {describe(hint)}")
    if isinstance(found, float) and not math.isfinite(found) and (math.isnan(found) or found != default):
        raise BadOption(f"{_prefix(where)}{name} = {found}; give a finite number")
    return found


def to_toml(values: Mapping[str, Any]) -> str:
    """TOML that reads back to the same values: a `key = value` a line, then mappings as tables; None is left out.

    Raises `BadOption` for numbers that are not finite and for values that TOML does not hold.
    """
    lines = [f"{_key(k)} = {_toml(v, k)}\n" for k, v in values.items() if v is not None and not isinstance(v, Mapping)]
    lines += _tables(values, ())
    return "".join(lines)


def _tables(values: Mapping[str, Any], above: tuple[str, ...]) -> list[str]:
    lines = []
    for key, table in values.items():
        if isinstance(table, Mapping):
            path = (*above, key)
            lines.append(f"\n[{'.'.join(map(_key, path))}]\n")
            flat = {k: v for k, v in table.items() if v is not None and not isinstance(v, Mapping)}
            lines += [f"{_key(k)} = {_toml(v, '.'.join((*path, k)))}\n" for k, v in flat.items()]
            lines += _tables(table, path)
    return lines


_NO = object()


def _convert(value: Any, hint: Any, text: bool) -> Any:
    """The converted value, or `_NO`."""
    if hint is Any or isinstance(hint, (str, TypeVar)):
        return value
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return _first(_convert(value, choice, text) for choice in sorted(arguments, key=_narrowness))
    if origin is Literal:
        return _first(_equal(_convert(value, type(choice), text), choice) for choice in arguments)
    if hint is None or hint is type(None):
        return None if value is None or (text and value.lower() in {"none", ""}) else _NO
    if origin in (tuple, list):
        return _sequence(value, origin, arguments, text)
    if origin is not None and isinstance(origin, type):
        return value if isinstance(value, origin) and not text else _NO
    return _scalar(value, hint, text)


def _scalar(value: Any, hint: Any, text: bool) -> Any:
    if not isinstance(hint, type):
        return value
    if type(value).__module__ == "numpy" and getattr(value, "ndim", 1) == 0:
        value = value.item()
    if text and hint in (bool, int, float, Path):
        return _from_text(value, hint)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value) if abs(value) < 2**1023 else _NO
    if hint is Path and isinstance(value, str):
        return Path(value)
    if isinstance(value, bool) and hint in (int, float):
        return _NO
    return value if isinstance(value, hint) else _NO


def _from_text(value: str, hint: type) -> Any:
    if hint is bool:
        return _WORDS.get(value.strip().lower(), _NO)
    try:
        return hint(value)
    except ValueError:
        return _NO


def _sequence(value: Any, origin: type, arguments: tuple[Any, ...], text: bool) -> Any:
    if text:
        value = [part.strip() for part in value.split(",")] if value.strip() else []
    if not isinstance(value, (list, tuple)):
        return _NO
    if origin is tuple and Ellipsis not in arguments and arguments:
        if len(value) != len(arguments):
            return _NO
        parts = [_convert(part, hint, text) for part, hint in zip(value, arguments)]
    else:
        hint = arguments[0] if arguments else Any
        parts = [_convert(part, hint, text) for part in value]
    infinite = any(isinstance(part, float) and not math.isfinite(part) for part in parts)
    return _NO if infinite or any(part is _NO for part in parts) else origin(parts)


def _first(found: Iterable[Any]) -> Any:
    return next((value for value in found if value is not _NO), _NO)


def _equal(value: Any, choice: Any) -> Any:
    return choice if type(value) is type(choice) and value == choice else _NO


def _narrowness(hint: Any) -> int:
    """Order in which the members of a union are tried: None, bool, int, float, sequences, the rest, text."""
    order = [type(None), bool, int, float]
    return order.index(hint) if hint in order else 9 if hint is str else 5


def describe(hint: Any) -> str:
    """A type in words, as messages and the method guide have it: `number or text`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(describe(choice) for choice in sorted(arguments, key=_narrowness, reverse=True))
    if origin is Literal:
        return " or ".join(repr(choice) for choice in arguments)
    if hint is None or hint is type(None):
        return "none"
    if origin in (tuple, list):
        if origin is tuple and arguments and Ellipsis not in arguments:
            return f"a list of {len(arguments)}: {', '.join(describe(part) for part in arguments)}"
        return f"a list, each entry {describe(arguments[0])}" if arguments else "a list"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return "a table"
    return str(_NAMES.get(hint) or getattr(hint, "__name__", hint))


def _refuse_unknown(values: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    names = sorted(known)
    choices = f"options: {', '.join(names)}" if names else "it has none"
    for name in values:
        if name not in names:
            close = difflib.get_close_matches(str(name), names, n=1)
            hint = f", did you mean '{close[0]}'?" if close else ";"
            raise BadOption(f"{_prefix(where)}no option {_shown(name)}{hint} {choices}")


def _prefix(where: str) -> str:
    return f"{where}: " if where else ""


def _shown(value: Any) -> str:
    """A value in at most 60 characters of one line."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def _hint(annotation: Any, function: Callable[..., Any]) -> Any:
    """The annotation resolved, or Any when it names something that is only imported for type checking."""
    if annotation is REQUIRED:
        return Any
    holder = types.SimpleNamespace(__annotations__={"it": annotation})
    try:
        return typing.get_type_hints(holder, globalns=getattr(function, "__globals__", {}))["it"]
    except NameError:
        return Any


def _key(name: str) -> str:
    bare = name.isascii() and name.replace("-", "").replace("_", "").isalnum()
    return name if bare else _toml(name, name)


def _toml(value: Any, name: str) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        if any(0xD800 <= ord(letter) <= 0xDFFF for letter in value):
            raise BadOption(f"{name} = {_shown(value)} is no Unicode text; it cannot be written as TOML")
        return '"' + "".join(_toml_letter(letter) for letter in value) + '"'
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise BadOption(f"{name} = {value} cannot be written; give a finite number")
        return repr(value)
    if isinstance(value, Path):
        return _toml(str(value), name)
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_toml(item, name) for item in value) + "]"
    raise BadOption(f"{name} = {_shown(value)} cannot be written as TOML; give text, numbers or lists of them")


def _toml_letter(letter: str) -> str:
    if letter in _ESCAPES:
        return _ESCAPES[letter]
    return f"\\u{ord(letter):04X}" if ord(letter) < 32 or ord(letter) == 127 else letter
