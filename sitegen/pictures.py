"""Two small pictures of every method: what fused units take from planted twins, what a fused toy model answers.

`python -m sitegen.pictures [NAME...]` draws those of every method, or of some, into `docs/methods/`; building the site
draws what is missing.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

INPUTS, WIDTH, OUTPUTS, SAMPLES = 12, 16, 4, 400
NOISE = 0.1  # of the twin's weights, relative to their spread
CELL = 9  # pixels
FAINT = 0.08  # share of the largest entry below which nothing is drawn
FOLDER = Path(__file__).parent.parent / "docs" / "methods"
TRIED = FOLDER / "drawn.json"  # methods that were tried, also those that take neither pair
log = logging.getLogger("sitegen")


def missing() -> list[str]:
    """Registered methods that nobody has tried to draw."""
    from featalign.fuse import METHODS

    tried_before = json.loads(TRIED.read_text()) if TRIED.exists() else []
    return [name for name in METHODS.names() if name not in tried_before]


def stored() -> dict[str, str]:
    """The pictures in `docs/methods`, by file name."""
    return {path.name: path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("*.svg"))}


def draw(names: Sequence[str]) -> dict[str, str]:
    """`{NAME-maps.svg, NAME-response.svg: picture}`, for those of the methods that take such networks."""
    if not names:
        return {}
    permuted, rotated = planted_pair(linear=False), planted_pair(linear=True)
    toy = toy_pair()
    drawn = {}
    for name in names:
        made = {
            f"{name}-maps.svg": tried(maps, *permuted, name) or tried(maps, *rotated, name),
            f"{name}-response.svg": tried(response, toy, name),
        }
        drawn |= {file: picture for file, picture in made.items() if picture}
    return drawn


def tried(draw: Callable[..., str], *arguments: Any) -> str | None:
    """The picture, or None where the method refuses the pair; any other error is told, and costs only the picture."""
    from featalign.errors import FeatalignError

    try:
        return draw(*arguments)
    except FeatalignError:
        return None
    except Exception as error:
        log.warning("no picture of '%s': %s: %s", arguments[-1], type(error).__name__, error)
        return None


def planted_pair(linear: bool) -> tuple[Any, torch.Tensor]:
    """A problem of two twins, and the map `[n, n]` from the order of the second to that of the first.

    Twins differ by a permutation of their units behind a ReLU, or by a rotation of a linear space.
    """
    from featalign.clients import Cohort
    from featalign.dictionaries import train_many
    from featalign.fuse import FusionProblem

    draw = torch.Generator().manual_seed(3)
    first, last = (torch.randn(*shape, generator=draw) for shape in ((WIDTH, INPUTS), (OUTPUTS, WIDTH)))
    if linear:
        turn = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=draw))[0]
    else:
        turn = torch.eye(WIDTH)[torch.randperm(WIDTH, generator=draw)]
    twins = [network(first, last, linear), network(turn @ first, last @ turn.T, linear)]
    with torch.no_grad():
        for parameter in twins[1].parameters():
            parameter += NOISE * parameter.std() * torch.randn(parameter.shape, generator=draw)
    x = torch.randn(SAMPLES, INPUTS, generator=draw)
    cohort = Cohort.of(twins, x)
    space = cohort.graphs[0].hidden[0].name
    hidden = [twin[:-1](x).detach() for twin in twins]
    bases = [found[0] for found in train_many(hidden, "topk", (0,), width=2 * WIDTH, k=4, steps=600)]
    return FusionProblem(cohort, reference=0, dictionaries={space: tuple(bases)}), turn


def network(first: torch.Tensor, last: torch.Tensor, linear: bool) -> nn.Sequential:
    """Inputs to outputs through one hidden space, with these weights."""
    between = [] if linear else [nn.ReLU()]
    module = nn.Sequential(nn.Linear(INPUTS, WIDTH), *between, nn.Linear(WIDTH, OUTPUTS))
    with torch.no_grad():
        module[0].weight.copy_(first)
        module[-1].weight.copy_(last)
    return module


def toy_pair() -> Any:
    """Two toy models of the same 24 features in 8 dimensions, as a problem."""
    from featalign.studies import toy

    found = toy.compare(seeds=1, steps=1500, sae_steps=800, methods=("vanilla",), progress=False)
    return found.example["problem"]


def maps(problem: Any, turn: torch.Tensor, name: str) -> str:
    """Out-maps of both clients side by side, the second client's units in the order of their twins."""
    from featalign.fuse import solve

    fused = solve(problem, name)
    space = problem.graph.hidden[0].name
    first, second = (alignment.maps[space].out for alignment in fused.alignments)
    return heatmap([first, second @ turn.double()], f"{name}: what fused units take from A (left) and B (right)")


def response(problem: Any, name: str) -> str:
    """Outputs of the fused model when one feature at a time is on, `[features, features]`."""
    from featalign.fuse import solve

    module = solve(problem, name, repair=False).module
    size = problem.cohort.probe.example(1).args[0].shape[-1]
    with torch.no_grad():
        out = module(torch.eye(size))
    return heatmap([out.double()], f"{name}: outputs of the fused toy model, one feature on at a time")


def heatmap(panels: Sequence[torch.Tensor], title: str) -> str:
    """Matrices side by side as an SVG: blue is positive, red negative, each panel on its own scale."""
    left, parts = 0.0, []
    height = max(len(panel) for panel in panels) * CELL
    for panel in panels:
        scale = float(panel.abs().max()) or 1.0
        for row, values in enumerate((panel / scale).tolist()):
            for column, value in enumerate(values):
                if abs(value) > FAINT:
                    colour = "#2a6fbb" if value > 0 else "#c0392b"
                    place = f'x="{left + column * CELL:g}" y="{row * CELL}" width="{CELL}" height="{CELL}"'
                    parts.append(f'<rect {place} fill="{colour}" fill-opacity="{abs(value):.1g}"/>')
        width = panel.shape[1] * CELL
        parts.append(
            f'<rect x="{left:g}" y="0" width="{width}" height="{len(panel) * CELL}" fill="none" stroke="#999"/>'
        )
        left += width + 2 * CELL
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-1 -1 {left - 2 * CELL + 2:g} {height + 2}" role="img">'
    return f"{head}<title>{title}</title>{''.join(parts)}</svg>"


def write(names: Sequence[str]) -> None:
    """Draw methods and note that they were tried."""
    for file, picture in draw(names).items():
        (FOLDER / file).write_text(picture, encoding="utf-8")
    before = json.loads(TRIED.read_text()) if TRIED.exists() else []
    TRIED.write_text(json.dumps(sorted({*before, *names}), indent=1) + "\n")


if __name__ == "__main__":
    from featalign.fuse import METHODS

    write(sys.argv[1:] or METHODS.names())
