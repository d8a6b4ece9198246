"""Every generated page, by its path below `docs/`."""

from __future__ import annotations

from pathlib import Path

from sitegen import commands, gallery, measured, methods, own, reference, schemas

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


def pages() -> dict[str, str]:
    """`{path: markdown}` of everything that is not written by hand."""
    found: dict[str, str] = {}
    for part in (methods, measured, gallery, schemas, commands, reference, own):
        found |= part.pages()
    return found


def navigation(written: set[str], generated: dict[str, str]) -> list[dict[str, object]]:
    """The menu: what is there of the list below, with generated pages in their order."""
    wanted: list[tuple[str, list[str]]] = [
        ("Start", ["index.md", "tutorial.md", "gallery.md", "glossary.md", "prior-work.md"]),
        ("Verbs", ["compare.md", "match.md", "diagnose.md", "fuse.md", "federated.md", "toy.md", "bench.md"]),
        ("Methods", sorted((p for p in generated if p.startswith("methods/")), key=lambda p: p != "methods/index.md")),
        ("Your own", ["data.md", "places.md", "own.md", "contributing.md"]),
        ("Theory", ["superposition.md", "theory.md", "certificates.md", "bibliography.md"]),
        ("Results", ["measured.md", "fusion.md", "vision.md"]),
        ("Reference", ["commands.md", "results.md", *sorted(p for p in generated if p.startswith("schemas/"))]),
        ("API", sorted(p for p in generated if p.startswith("api/"))),
        ("Release", ["install.md", "changelog.md"]),
    ]
    there = written | set(generated)
    listed = [(title, [page for page in pages if page in there]) for title, pages in wanted]
    known = {page for _, pages in listed for page in pages}
    listed.append(("More", sorted(page for page in written if page not in known)))
    return [{title: pages} for title, pages in listed if pages]
