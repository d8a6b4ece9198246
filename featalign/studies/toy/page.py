"""The page of a toy comparison."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from featalign.report import Section, coded, page
from featalign.studies.result import config_dict

if TYPE_CHECKING:
    from featalign.studies.toy.result import ToyResult


def toy_page(result: ToyResult) -> str:
    """The page as HTML text."""
    config, figures = result.config, result.figures
    methods = result.frames["methods"].set_index("method")
    left_out = methods[~methods["available"]]
    losses = _table(Section("Loss of the fused models"), result.to_frame().reset_index()).text(
        "Squared error summed over features, held out. Raw: as the method returns the model. Distilled: output bias "
        "and one gain fitted to what each client returns on its own inputs. Calibrated: fitted to the task on the "
        "probe.",
        note=True,
    )
    if len(left_out):
        losses.table(["method", "left out because"], left_out["reason"].reset_index().to_numpy().tolist())
    summaries = [[name, row["basis"], coded(row["summary"])] for name, row in methods[methods["available"]].iterrows()]
    sections = [
        losses.figure(figures["losses"]),
        Section("Which features survive").figure(figures["survival"]),
        _table(Section("Matched pairs against the truth"), result.frames["matching"]),
        _regimes(result),
        Section("Methods").table(["method", "basis", "what it does"], summaries, wide=True),
        _provenance(result),
    ]
    what = "words" if config.data == "words" else "known features"
    title = f"featalign toy: {config.n} {what} in {config.m} units, {config.clients} clients"
    return page(title, _lead(result), sections)


def _lead(result: ToyResult) -> list[str]:
    """The finding in two sentences."""
    best, found = result.winner, result.frames["matching"]
    error = {
        "the best single fused model": f"{best}, {result.loss(best):.4f}",
        "one client": f"{result.single:.4f}",
        "joint training": f"{result.joint:.4f}",
    }
    return [
        "Held-out squared error: " + "; ".join(f"{name} {value}" for name, value in error.items()) + ".",
        f"Mean correlation of matched units {found['neuron'].mean():.2f}, of matched latents "
        f"{found['feature'].mean():.2f}; {found['true_pairs'].mean():.1f} of {result.config.common} common features "
        f"matched truly, {found['false_pairs'].mean():.1f} pairs false.",
    ]


def _regimes(result: ToyResult) -> Section:
    verdict = result.verdict
    section = Section("Regime").verdict(
        f"{verdict['name']} ({verdict['agreement']:.0%} of seeds), recommended: {verdict['recommended']}. "
        f"{verdict['explanation']}"
    )
    frame = result.frames["regimes"].drop(columns=["explanation"]).dropna(axis=1, how="all")
    return _table(section, frame)


def _provenance(result: ToyResult) -> Section:
    options = [[name, value] for name, value in config_dict(result.config).items()]
    versions = ", ".join(f"{name} {version}" for name, version in result.facts.get("versions", {}).items())
    return Section("How this page was made").text(versions, note=True).table(["option", "value"], options)


def _table(section: Section, frame: pd.DataFrame) -> Section:
    return section.table([str(name) for name in frame.columns], [[_shown(v) for v in row] for row in frame.to_numpy()])


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return "" if value != value else f"{value:.4f}"
    return str(value)
