"""The command line: thin commands that parse options, call a pipeline and print what it returns."""

from featalign.cli.commands import app, main

__all__ = ["app", "main"]
