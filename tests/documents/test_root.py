"""What every document points to is there."""

import functools
import re

import pytest

from tests.documents.given import ROOT, documents


@functools.cache
def generated() -> frozenset[str]:
    """Pages that only the built site has."""
    from sitegen.pages import pages

    return frozenset(pages())


@pytest.mark.parametrize("name", documents())
def test_links_and_commands_are_there(name):
    """Relative links lead to files or pages; every `featalign ...` is a command with the options it is shown with."""
    import typer

    from featalign.cli import app

    text = (ROOT / name).read_text()
    prose = re.sub(r"^```.*?^```|`[^`\n]*`", "", text, flags=re.M | re.S)  # `model[:2](x)` is no link
    for link in re.findall(r"\]\(([^)#]+)", prose):
        if "://" in link or ((ROOT / name).parent / link).exists():
            continue
        target = ((ROOT / name).parent / link).resolve()
        assert target.relative_to(ROOT / "docs").as_posix() in generated(), link
    top = typer.main.get_command(app)
    shown = "" if name == "CHANGELOG.md" else text  # it names commands that are gone
    for line in re.findall(r"(?:^|`)featalign ((?:[a-z0-9]+ ?)+[^`\n]*)", shown, re.M):
        words, command = line.split("#")[0].split(), top
        while words and words[0] in getattr(command, "commands", {}):
            command = command.commands[words.pop(0)]
        assert command is not top, line
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        given = {word.split("=")[0].rstrip(",.;") for word in words if re.match(r"--?[a-z]", word)}
        assert given <= known | {"--help"}, (line, given - known)


def test_every_method_is_in_the_guide():
    from featalign.fuse import METHODS

    assert {f"methods/{name}.md" for name in METHODS.names()} <= generated()
