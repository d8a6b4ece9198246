"""`featalign doctor`: versions against what is tested, the device, the cache, and what is missing with its remedy."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import typer

from featalign.cli.output import print_rows, print_table

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
FREE = 1e9  # bytes in the cache's file system below which a warning is due


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: its state is "ok", "optional" (missing, and nothing needs it) or "wrong"."""

    subject: str
    found: str
    state: str = "ok"
    remedy: str = ""


def doctor(as_json: bool = typer.Option(False, "--json", help="Print JSON.")) -> None:
    """Versions and their tested bounds, device, cache and browser: what is missing, and what to do about it.

    Exit status 1 when something is wrong.
    """
    findings = examine()
    if as_json:
        print_rows([asdict(finding) for finding in findings], True)
    else:
        print_table([asdict(finding) for finding in findings])
        wrong = [finding for finding in findings if finding.state == "wrong"]
        for finding in wrong:
            typer.echo(f"{finding.subject}: {finding.remedy}")
        typer.echo("all is well" if not wrong else f"{len(wrong)} to mend")
    if any(finding.state == "wrong" for finding in findings):
        raise typer.Exit(1)


def examine() -> list[Finding]:
    """Every finding, in the order in which they are printed."""
    parts: tuple[Callable[[], Iterator[Finding]], ...] = (_python, _requirements, _device, _cache, _tools)
    return [finding for part in parts for finding in part()]


def _python() -> Iterator[Finding]:
    from featalign import __version__

    yield Finding("python", platform.python_version())
    yield Finding("featalign", __version__)


def _requirements() -> Iterator[Finding]:
    """Installed distributions against the bounds of featalign's own metadata, which are what is tested."""
    from packaging.requirements import Requirement

    try:
        lines = importlib.metadata.requires("featalign") or []
    except importlib.metadata.PackageNotFoundError:
        yield Finding("requirements", "featalign is not installed", "wrong", "pip install -e . in its folder")
        return
    for requirement in map(Requirement, lines):
        extras = [name for name in ("federated", "notebooks") if _only_for(requirement.marker, name)]
        if requirement.marker is not None and not extras:
            continue
        yield _compared(requirement.name, str(requirement.specifier), extras)


def _only_for(marker: object, extra: str) -> bool:
    return marker is not None and f'extra == "{extra}"' in str(marker)


def _compared(name: str, bounds: str, extras: list[str]) -> Finding:
    from packaging.specifiers import SpecifierSet

    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        if extras:
            return Finding(name, "not installed", "optional", f"pip install 'featalign[{extras[0]}]'")
        return Finding(name, "not installed", "wrong", f"pip install '{name}{bounds}'")
    if SpecifierSet(bounds).contains(version, prereleases=True):
        return Finding(name, f"{version} (wants {bounds or 'any'})")
    return Finding(name, f"{version} (wants {bounds})", "wrong", f"pip install '{name}{bounds}'")


def _device() -> Iterator[Finding]:
    if importlib.util.find_spec("torch") is None:
        return
    import torch

    threads = f"{torch.get_num_threads()} threads on {os.cpu_count()} cores"
    yield Finding("cpu", threads)
    if torch.cuda.is_available():
        yield Finding("cuda", ", ".join(torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())))
    else:
        yield Finding("cuda", "none", "optional", "nothing needs one; --device cuda uses it where there is one")


def _cache() -> Iterator[Finding]:
    from featalign.cli.cache import in_words
    from featalign.data import describe
    from featalign.storage.cache import cache_folder
    from featalign.storage.inventory import inventory

    folder = cache_folder()
    held = f"{folder}: {in_words(sum(kept.size for kept in inventory()))}"
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not os.access(there, os.W_OK):
        yield Finding("cache", held, "wrong", "make it writable, or name another folder in FEATALIGN_CACHE")
    elif shutil.disk_usage(there).free < FREE:
        yield Finding("cache", held, "wrong", "less than 1 GB is free: `featalign cache clear`, or set FEATALIGN_CACHE")
    else:
        yield Finding("cache", held)
    for row in describe():
        missing = "" if row["cached"] else f"featalign data fetch {row['name']}"
        found = "not on this machine" if missing else "on this machine"
        yield Finding(f"data: {row['name']}", found, "optional" if missing else "ok", missing)


def _tools() -> Iterator[Finding]:
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if browser:
        yield Finding("chromium", browser)
    else:
        remedy = "only browser tests and `make gallery` need it: apt-get install chromium"
        yield Finding("chromium", "none", "optional", remedy)
