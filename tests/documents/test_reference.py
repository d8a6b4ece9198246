"""The reference: every public name is in it, and says its shapes, its errors and its source where it has any."""

import ast
import inspect
import re
import textwrap

import pytest

from sitegen import bibliography, reference
from tests.documents.given import ROOT

TENSORS = re.compile(r"\b(torch\.)?Tensor\b|\bndarray\b")
SHAPE = re.compile(r"\[[^\]\n]*\]|scalar|as `|shape|square|coupling|same as")


@pytest.fixture(scope="module")
def public():
    return {name: value for name, value in reference.everything().items() if not inspect.ismodule(value)}


def functions(public):
    return {name: value for name, value in public.items() if inspect.isfunction(value)}


def methods(public):
    """Public methods and properties that public classes define, with what the reference shows of each."""
    found = {}
    for name, value in public.items():
        for key, held in vars(value).items() if inspect.isclass(value) else ():
            held = getattr(held, "__func__", None) or getattr(held, "fget", None) or getattr(held, "func", held)
            if inspect.isfunction(held) and held.__name__ == key and not key.startswith("_"):
                found[f"{name}.{key}"] = (held, inspect.getdoc(getattr(value, key)) or "")
    return found


def described(public):
    """Public functions and methods, each with its words."""
    return {name: (each, inspect.getdoc(each) or "") for name, each in functions(public).items()} | methods(public)


def raised(function):
    """Names of what a function raises by itself."""
    calls = [node.exc for node in ast.walk(source(function)) if isinstance(node, ast.Raise)]
    return [call.func.id for call in calls if isinstance(call, ast.Call) and isinstance(call.func, ast.Name)]


def source(function):
    return ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function))))


def test_every_public_name_is_in_the_reference(public):
    text = "\n".join(reference.pages().values())
    missing = [
        name
        for name, value in public.items()
        if f"::: {reference.home(value)}\n" not in text and f"## `{name}`" not in text and f"## `fa.{name}`" not in text
    ]
    assert not missing


def test_every_public_name_says_what_it_is_for(public):
    described = {name: value for name, value in public.items() if reference.home(value)}
    assert len(described) > 150
    assert not [name for name, value in described.items() if not (inspect.getdoc(value) or "").strip()]


def test_functions_and_methods_of_tensors_give_shapes(public):
    bare = []
    for name, (each, words) in described(public).items():
        annotations = " ".join(map(str, inspect.get_annotations(inspect.unwrap(each)).values()))
        if TENSORS.search(annotations) and not SHAPE.search(words):
            bare.append(name)
    assert not bare


def test_functions_and_methods_that_raise_say_so(public):
    every = described(public)
    assert not [
        f"{name}: {raised(each)}" for name, (each, words) in every.items() if raised(each) and "aise" not in words
    ]


def test_methods_of_public_classes_say_what_they_are_for(public):
    found = methods(public)
    assert len(found) > 300 and not [name for name, (_, words) in found.items() if not words.strip()]


def test_every_citation_is_in_the_bibliography():
    """Docstrings, comments and pages; a word of a sentence before a year is no name."""
    texts = [path.read_text() for folder in ("featalign", "docs") for path in (ROOT / folder).rglob("*.py")]
    texts += [path.read_text() for path in (ROOT / "docs").rglob("*.md") if path.name != "bibliography.md"]
    cited = {found for text in texts for found in bibliography.cited_in(text)}
    papers = {found for found in cited if " and " in found or " et al" in found}
    assert len(papers) > 40
    assert not sorted(found for found in papers if bibliography.anchor_of(found) is None)


def test_the_bibliography_has_no_paper_twice():
    lines = bibliography.PAGE.read_text().splitlines()
    entries = [line for line in lines if line.startswith("* ")]
    assert len(entries) == len(set(bibliography.anchors())) and all(bibliography.ENTRY.match(line) for line in entries)
