"""The polysemanticity page, built from a diagnosis folder: results.json and browser.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from featalign import storage
from featalign.report.page import Section, drawing, page, paragraph, rich, write_page


def build_diagnosis(folder: Path | str) -> Path:
    """Write `report.html` into a diagnosis folder and return its path; raises `CorruptFile` for damaged files."""
    folder = Path(folder)
    content, browser = storage.read_json(folder / "results.json"), storage.read_json(folder / "browser.json")
    with drawing(folder):
        text = diagnosis_page(content, browser)
    return write_page(folder / "report.html", text)


def diagnosis_page(content: Mapping[str, Any], browser: Mapping[str, Any]) -> str:
    """The page as HTML text."""
    from featalign.plots import polysemanticity

    sections = [_verdicts(content), _browser(browser)]
    for name, layer in content["layers"].items():
        section = Section(f"Layer {name}").verdict(layer["verdict"])
        section.figure(polysemanticity.effective_features(layer, name))
        section.figure(polysemanticity.psi_curves(layer, name)).figure(polysemanticity.pareto(layer["sweep"], name))
        sections.append(section)
    sections += [_measures(content), _quality(content), _limits(content)]
    lead = rich(
        "How many features does each unit carry, and would we see the same in a network that learned nothing? "
        '<b class="feature">{} hidden layers</b>, {} inputs, dictionaries from {} seeds. Every number has its control '
        "beside it.",
        len(content["layers"]), content["facts"]["samples"], len(content["facts"]["seeds"]),
    )  # fmt: skip
    return page(f"Polysemanticity of {content['title']}", [paragraph(lead)], sections)


def _verdicts(content: Mapping[str, Any]) -> Section:
    section = Section("Verdict")
    for name, layer in content["layers"].items():
        words = "<b>{}</b> ({} units). {} {}"
        section.verdict(rich(words, name, layer["units"], layer["verdict"], layer["classes"]))
    return section


def _browser(browser: Mapping[str, Any]) -> Section:
    return (
        Section("Units and features")
        .text(
            "The most polysemantic units (left) and the features they carry. Click a unit to see its features, a "
            "feature to see the units it lives on. Thumbnails are the inputs that drive it most; for features also "
            "inputs at the quartiles of their firing, where the label of a feature must still hold."
        )
        .widget("units-and-features", "diagnosis", browser)
    )


def _cell(score: Mapping[str, Any] | None) -> str:
    if score is None or score["value"] is None:
        return "–"
    if not score["evidence"]:
        return "no evidence"
    low, high = score["interval"]
    return f"{score['value']:.2f} [{low:.2f}, {high:.2f}], null {score['null']:.2f}, n {score['count']}"


def _measures(content: Mapping[str, Any]) -> Section:
    names = {
        "effective": "features per unit (null: shuffled weights)",
        "psi": "psi (null: shuffled weights)",
        "consistency": "seeds agree (null: random directions)",
        "privileged": "unit kurtosis (null: rotated units)",
        "unit_selectivity": "unit class selectivity (null: shuffled labels)",
        "latent_selectivity": "latent class selectivity (null: shuffled labels)",
        "unit_probing": "1-sparse probe on units (null: shuffled labels)",
        "probing": "1-sparse probe on latents (null: shuffled labels)",
    }
    rows = []
    for key, label in names.items():
        gate = key not in {"effective", "psi"}
        cells = [
            _cell(layer[key]) if gate or (layer["readable"] and layer["learned"]) else "no evidence"
            for layer in content["layers"].values()
        ]
        rows.append([label, *cells])
    text = "Value with its 95 % bootstrap interval, the null, and the count behind it; where the interval covers the "
    return Section("Measures").text(text + "null the table says so.").table(["measure", *content["layers"]], rows)


def _quality(content: Mapping[str, Any]) -> Section:
    rows = []
    for name, layer in content["layers"].items():
        quality, splice = layer["quality"], layer["splice"]
        dead = f"{100 * quality['dead_fraction']:.1f} % of {layer['width']} in {quality['dead_samples']} samples"
        kept = f"{splice['scores_spliced']['accuracy']:.3f} of {splice['scores']['accuracy']:.3f}" if splice else "–"
        recovered = f"{splice['recovered']:.3f}" if splice and splice["recovered"] is not None else "–"
        rows.append(
            [
                name, layer["width"], f"{quality['l0']:.1f}", f"{quality['explained_variance']:.3f}",
                f"{layer['random_variance']:.3f}", dead, recovered, kept, f"{layer['redundancy']:.3f}",
                f"{layer['shrinkage']:.3f}",
            ]
        )  # fmt: skip
    head = ["layer", "width", "L0", "explained variance", "random dictionary", "dead", "loss recovered", "accuracy"]
    text = "On held-out activations; loss recovered compares the spliced reconstruction with mean ablation."
    return Section("Dictionary quality").text(text).table([*head, "redundant", "gain"], rows)


def _limits(content: Mapping[str, Any]) -> Section:
    facts = content["facts"]
    words = (
        f"Activations of {facts['samples']} inputs; dictionaries at a default width and sparsity, so counts of "
        "features are relative to them: read the curves, not one number.",
        "What the dictionary leaves unexplained is invisible here.",
        "The control has the same weights in random order, so it keeps the data's own structure; differences from it "
        "are what training did.",
        "Partners are the best correlated latents of other dictionaries on the same inputs.",
        "Class effect is the mean change of each output when the latent is taken out where it fires.",
    )
    return Section("How to read this, and what it cannot say").text(" ".join(words))
