"""The generated part of the site: methods from registries, reference from `__all__`, commands from the command line.

`mkdocs.yml` loads `hooks.py`, which puts these pages beside the hand-written ones in `docs/`; tests read them too.
"""
