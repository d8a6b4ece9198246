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


def test_functions_of_tensors_give_shapes(public):
    bare = []
    for name, function in functions(public).items():
        annotations = " ".join(map(str, inspect.get_annotations(inspect.unwrap(function)).values()))
        if TENSORS.search(annotations) and not SHAPE.search(inspect.getdoc(function) or ""):
            bare.append(name)
    assert not bare


def test_functions_that_raise_say_so(public):
    silent = []
    for name, function in functions(public).items():
        raised = [
            node.exc.func.id
            for node in ast.walk(source(function))
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name)
        ]
        if raised and "aise" not in (inspect.getdoc(function) or ""):
            silent.append(f"{name}: {', '.join(raised)}")
    assert not silent


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
