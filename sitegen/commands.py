"""Every command with its options, from the command line itself."""

from __future__ import annotations

from collections.abc import Iterator

HEAD = """# Commands

Every command with its options, as `--help` shows them. Errors are one line and exit status 2; `--debug` shows where
they come from. `featalign --install-completion` teaches the shell to complete commands and options.
"""


def pages() -> dict[str, str]:
    return {"commands.md": HEAD + "\n".join(lines())}


def lines() -> Iterator[str]:
    import typer

    from featalign.cli import app

    yield from described("featalign", typer.main.get_command(app))


def described(path: str, command: object) -> Iterator[str]:
    """A group and its commands, depth first, in the order of registration."""
    children = getattr(command, "commands", {})
    if path != "featalign":
        yield f"\n## `{path}`\n\n{(getattr(command, 'help', '') or '').strip()}\n"
        yield from options(command)
    for name, child in children.items():
        yield from described(f"{path} {name}", child)


def options(command: object) -> Iterator[str]:
    rows = []
    for parameter in getattr(command, "params", []):
        names = ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))
        if parameter.param_type_name == "argument":
            names = f"`{parameter.metavar or parameter.name.upper()}`"
        default = parameter.default
        shown = f" Default: `{default}`." if default not in (None, False, (), [], ...) and default != "" else ""
        rows.append(
            f"| {names} | {(getattr(parameter, 'help', '') or '').strip().replace('|', chr(92) + '|')}{shown} |"
        )
    if rows:
        yield "| option | what it does |\n|---|---|"
        yield from rows
