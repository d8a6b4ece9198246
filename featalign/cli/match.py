"""`featalign match`: which features of A are features of B, which are nobody else's?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer


def match(
    bases: list[str] = typer.Argument(
        None, metavar="[A B ...]", help="Folders of dictionaries (ours or sae-lens's), or releases: release/sae_id."
    ),
    model: list[str] = typer.Option(
        None, metavar="FOLDER", help="Folder of a language model: one for all, or one for each; repeat for several."
    ),
    texts: Path = typer.Option(None, metavar="FILE", help="Inputs of the models, one text per line."),
    site: list[str] = typer.Option(
        None,
        metavar="NAME",
        help="Hook name or module path, one for all or one for each; repeat for several.  [default: the dictionaries']",
    ),
    minimum: float = typer.Option(None, help="Least correlation of a pair.  [default: 0.3]"),
    witness: str = typer.Option(None, help="crosscoder: a dictionary of all clients as second witness."),
    geometry: str = typer.Option(None, help="Compared without inputs: auto, cosine, gromov.  [default: auto]"),
    width: int = typer.Option(None, help="Latents of dictionaries trained here.  [default: by size]"),
    device: str = typer.Option(None, help="Where networks run: cpu, cuda.  [default: cpu]"),
    config: Path = typer.Option(None, metavar="TOML", help="Start from the config.toml of a run."),
    out: Path = typer.Option(None, metavar="DIR", help="Folder of the page.  [default: reports/match-NAMES]"),
    csv: Path = typer.Option(None, "--csv", metavar="DIR", help="Also write every frame as CSV into a new folder."),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace an existing folder."),
    quiet: bool = typer.Option(False, "--quiet", help="No progress bars."),
) -> None:
    """Match the features of two or more dictionaries, or of language models; writes a self-contained page."""
    from featalign.studies.match.config import MatchRunConfig
    from featalign.studies.match.run import run

    given = {
        "bases": tuple(bases or ()) or None, "models": tuple(model or ()) or None, "sites": tuple(site or ()) or None,
        "texts": None if texts is None else str(texts), "minimum": minimum, "witness": witness, "geometry": geometry,
        "width": width, "device": device,
    }  # fmt: skip
    start = MatchRunConfig.from_toml(config) if config else MatchRunConfig()
    values: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    found = run(start.changed(**values), out, overwrite, progress=not quiet)
    for line in found.lines():
        typer.echo(line)
    if csv is not None:
        typer.echo(f"frames: {found.to_csv(csv)}")
    typer.echo(f"page: {found.folder}/report.html")
