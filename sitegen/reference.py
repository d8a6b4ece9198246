"""API reference: a page per package with everything in its `__all__`, and the verbs."""

from __future__ import annotations

import importlib
import inspect
from types import ModuleType
from typing import Any

VERBS = "verbs"


def packages() -> dict[str, ModuleType]:
    """The public packages by name."""
    import featalign

    found = {name: importlib.import_module(f"featalign.{name}") for name in featalign._PACKAGES}
    return {name: found[name] for name in sorted(found)}


def public(package: ModuleType) -> dict[str, Any]:
    """What a package offers: its `__all__`, or the classes of a module without one, as it is listed."""
    names = getattr(package, "__all__", None)
    if names is None:
        own = vars(package).items()
        names = [name for name, value in own if inspect.isclass(value) and value.__module__ == package.__name__]
    return {name: getattr(package, name) for name in names}


def everything() -> dict[str, Any]:
    """`{dotted public name: object}` of all packages and verbs."""
    import featalign

    found = {verb: getattr(featalign, verb) for verb in featalign._VERBS}
    for name, package in packages().items():
        found |= {f"{name}.{each}": value for each, value in public(package).items()}
    return found


def home(value: Any) -> str | None:
    """Where a class or function is defined, or None for other objects and modules."""
    value = inspect.unwrap(value) if inspect.isfunction(value) else value
    if inspect.isclass(value) or inspect.isfunction(value):
        return f"{value.__module__}.{value.__qualname__}"
    return None


def identifiers() -> dict[str, str]:
    """`{name as docstrings write it: identifier of its entry}`; names that two packages use are left out."""
    found: dict[str, str | None] = {}
    for dotted, value in everything().items():
        target = home(value)
        if target is None:
            continue
        for name in {dotted, dotted.rpartition(".")[2], f"fa.{dotted}"}:
            found[name] = target if found.get(name, target) == target else None
    return {name: target for name, target in found.items() if target is not None}


def pages() -> dict[str, str]:
    """`api/PACKAGE.md` and `api/verbs.md`."""
    import featalign

    verbs = {verb: getattr(featalign, verb) for verb in featalign._VERBS}
    verbs["fuse"] = importlib.import_module("featalign.fuse").fuse
    found = {f"api/{VERBS}.md": page("Verbs", inspect.getdoc(featalign) or "", verbs, "fa.")}
    for name, package in packages().items():
        title = f"`featalign.{name}`"
        found[f"api/{name}.md"] = page(title, inspect.getdoc(package) or "", public(package), f"{name}.")
    return found


def page(title: str, about: str, names: dict[str, Any], prefix: str) -> str:
    parts = [f"# {title}", doctest(about)]
    for name, value in names.items():
        parts.append(entry(name, value, prefix))
    return "\n\n".join(part for part in parts if part) + "\n"


def entry(name: str, value: Any, prefix: str) -> str:
    """A directive for classes and functions, words for registries and other values, links for modules."""
    if inspect.ismodule(value):
        return f"## `{prefix}{name}`\n\nModule: {first_line(value)}"
    target = home(value)
    if target is not None and target.startswith("featalign."):
        return f'::: {target}\n    options:\n      heading: "{prefix}{name}"\n      toc_label: "{name}"'
    listed = getattr(value, "names", None)
    if callable(listed):
        pages = value.kind == "fusion method"  # they have a page each
        entries = ", ".join(f"[`{each}`](../methods/{each}.md)" if pages else f"`{each}`" for each in listed())
        return f"## `{prefix}{name}`\n\nRegistry of {value.kind}s: {entries}."
    kind = type(value).__name__
    shown = repr(value)
    return f"## `{prefix}{name}`\n\n`{kind}`" + (f": `{shown}`" if len(shown) < 300 and "0x" not in shown else "")


def first_line(value: Any) -> str:
    return (inspect.getdoc(value) or "").partition("\n")[0]


def doctest(text: str) -> str:
    """Lines of a session as a block of code."""
    lines, inside = [], False
    for line in text.splitlines():
        session = line.startswith((">>>", "..."))
        if session != inside:
            lines.append("```" if inside else "```pycon")
            inside = session
        lines.append(line)
    return "\n".join([*lines, *(["```"] if inside else [])])
