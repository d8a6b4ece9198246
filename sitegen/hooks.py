"""Events of mkdocs: generated pages, equations as MathML, links from names to the reference and to the bibliography."""

from __future__ import annotations

import html
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))  # mkdocs loads this file by its path

from sitegen import bibliography, methods, pages, pictures, reference

made: dict[str, str] = {}


def on_config(config: Any) -> Any:
    """Everything generated, and the menu."""
    made.clear()
    made.update(pages.pages())
    drawn = pictures.stored() | pictures.draw(pictures.missing())
    made.update({f"methods/{name}.md": methods.page(name, set(drawn)) for name in methods.names()})
    made.update({f"methods/{name}": svg for name, svg in drawn.items()})
    written = {path.relative_to(pages.DOCS).as_posix() for path in pages.DOCS.rglob("*.md")}
    written = {path for path in written if not path.startswith("methods/")}
    config["nav"] = pages.navigation(written, {name: text for name, text in made.items() if name.endswith(".md")})
    return config


def on_files(files: Any, config: Any) -> Any:
    """Generated files take the place of notes of the same name; thumbnails come from the gallery's folder."""
    from mkdocs.structure.files import File

    for path in list(files.src_uris):
        if path in made or path.startswith("methods/"):
            files.remove(files.src_uris[path])
    for path, text in made.items():
        files.append(File.generated(config, path, content=text))
    for image in (pages.ROOT / "gallery").glob("*.webp"):
        files.append(File.generated(config, f"gallery/{image.name}", abs_src_path=str(image)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Links out of `docs/`: pictures of the gallery lie below it on the site, other files are named."""
    if "/" in page.file.src_uri:
        return markdown
    return re.sub(r"\[([^\]]+)\]\(\.\./([^)]+)\)", r"\1 (`\2`)", markdown.replace("](../gallery/", "](gallery/"))


def on_page_content(content: str, page: Any, config: Any, files: Any) -> str:
    """Equations, names and papers, outside blocks of code."""
    content = re.sub(r'<(span|div) class="arithmatex">(.*?)</\1>', mathml, content, flags=re.S)
    linked = reference.identifiers()
    own = page.file.src_uri

    def named(match: re.Match[str]) -> str:
        target = linked.get(html.unescape(match[1]))
        return match[0] if target is None else f'<autoref identifier="{target}" optional>{match[0]}</autoref>'

    content = outside(
        content, r"<(pre|a|h\d|autoref)\b.*?</\1>", lambda text: re.sub(r"<code>([^<]+)</code>", named, text)
    )
    if own != "bibliography.md":
        where = files.get_file_from_path("bibliography.md").url_relative_to(page.file)

        def cited(match: re.Match[str]) -> str:
            anchor = bibliography.anchor_of(match[0])
            return match[0] if anchor is None else f'<a href="{where}#{anchor}">{match[0]}</a>'

        content = outside(
            content, r"<(pre|a|code|h\d)\b.*?</\1>|<[^>]*>", lambda text: bibliography.CITATION.sub(cited, text)
        )
    return content


def outside(text: str, skipped: str, change: Callable[[str], str]) -> str:
    """`change` applied to what lies between the matches of a pattern."""
    done, last = [], 0
    for match in re.finditer(skipped, text, re.S):
        done += [change(text[last : match.start()]), match[0]]
        last = match.end()
    return "".join([*done, change(text[last:])])


def mathml(match: re.Match[str]) -> str:
    r"""`\(...\)` and `\[...\]` as MathML, which browsers draw without any script."""
    from latex2mathml.converter import convert

    text = html.unescape(match[2]).strip()
    return str(convert(text[2:-2], display="block" if text.startswith(r"\[") else "inline"))
