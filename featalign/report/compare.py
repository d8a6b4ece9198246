"""The comparison page, built from a run folder: results.json, matrices.safetensors, browser.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from featalign import storage
from featalign.report.page import Section, drawing, page, paragraph, rich, write_page


def build(folder: Path | str) -> Path:
    """Write `report.html` into a run folder from what it holds, and return its path.

    Raises `CorruptFile` when a file of the run folder is damaged.
    """
    folder = Path(folder)
    content = storage.read_json(folder / "results.json")
    tensors = storage.load_tensors(folder / "matrices.safetensors")
    matrices = {name: tensor.numpy() for name, tensor in tensors.items()}
    browser = storage.read_json(folder / "browser.json")
    with drawing(folder):
        text = compare_page(content, matrices, browser)
    return write_page(folder / "report.html", text)


def compare_page(content: Mapping[str, Any], matrices: Mapping[str, np.ndarray], browser: Mapping[str, Any]) -> str:
    """The page as HTML text."""
    from featalign.plots.compare import figures

    drawn = figures(content, matrices)
    config = content["config"]
    sections = [_headline(content).text(distance(content)).figure(drawn["accuracy"])]
    if "curves" in drawn:
        sections.append(
            Section("Mixing weight")
            .text(
                "The headline uses one weight fixed beforehand. The whole curve is shown so that nobody has to trust a "
                "weight chosen on test data. Bars are standard deviations over seeds."
            )
            .figure(drawn["curves"])
        )
    for name, space in content["spaces"].items():
        sections.append(_space(name, space).figure(drawn[f"{name}/plans"]).figure(drawn[f"{name}/correlations"]))
    if content["spaces"]:
        sections.append(
            Section("Aligned-feature browser")
            .text(
                rich(
                    "Click a pair of latents that the feature plan matched: the evaluation inputs that drive it most "
                    "in each client, its class profile, its match score. Under <i>only in</i> are latents without a "
                    "partner: what one client knows and the other does not. First seed; strongest latents first."
                )
            )
            .widget("aligned-features", "browser", browser)
        )
        sections.append(_polysemanticity(content).figure(drawn["polysemanticity"]))
        sections.append(_dictionaries(content))
    sections.append(_data(content))
    sections.append(_provenance(content))
    title = f"featalign: {config['dataset']}, {config['split']}, {config['clients']} clients"
    return page(title, _lead(content), sections)


def percent(value: float | None, digits: int = 2) -> str:
    """A fraction as per cent."""
    return "–" if value is None else f"{100 * value:.{digits}f}"


def best_row(content: Mapping[str, Any], *kinds: str, basis: str | None = None) -> str | None:
    """Name of the row with the highest mean accuracy among kinds (and one basis)."""
    rows = {
        name: entry["accuracy"]["mean"]
        for name, entry in content["methods"].items()
        if entry["kind"] in kinds and (basis is None or entry["basis"] == basis)
    }
    return max(rows, key=lambda name: rows[name]) if rows else None


def _lead(content: Mapping[str, Any]) -> list[Markup]:
    """The finding in two or three sentences."""
    methods, config = content["methods"], content["config"]
    mean = {name: entry["accuracy"]["mean"] for name, entry in methods.items()}
    client, one_shot = best_row(content, "client"), best_row(content, "one-shot", "one-shot + refit")
    best, ensemble = percent(mean[client or ""]), percent(mean["ensemble-softmax"])
    parts = [rich("Best client alone {} %, ensemble of all {} %.", best, ensemble)]
    if "vanilla" in mean:
        parts.append(rich("Averaging position by position gives {} %.", percent(mean["vanilla"])))
    if one_shot:
        words = "The best single fused network is <code>{}</code> with {} %."
        parts.append(rich(words, one_shot, percent(mean[one_shot])))
    feature = best_row(content, "one-shot", "one-shot + refit", basis="feature")
    neuron = best_row(content, "one-shot", "one-shot + refit", basis="neuron")
    if feature and neuron:
        words = (
            'Best in the <b class="neuron">neuron basis</b>: {} % ({}); best in the '
            '<b class="feature">feature basis</b>: {} % ({}).'
        )
        parts.append(rich(words, percent(mean[neuron]), neuron, percent(mean[feature]), feature))
    found = [paragraph(Markup(" ").join(parts))]
    matched = [
        f"{name}: units {_mean(space, 'neuron'):.2f}, features {_mean(space, 'feature'):.2f}"
        for name, space in content["spaces"].items()
    ]
    if matched:
        found.append(paragraph(f"Mean correlation of matched pairs by space: {'; '.join(matched)}."))
    shown = f"{config['probe']} unlabelled probe inputs, augmentation “{config['augment']}”"
    text = (
        f"{config['seeds']} seed(s), {shown}, mixing weight {config['mixing']:.3g}, no labels used in fusion. "
        "All refits see the same inputs."
    )
    return [*found, paragraph(text, note=True)]


def distance(content: Mapping[str, Any]) -> str:
    """How far the best feature-basis network is from the best one, and what the spaces say about it."""
    best = best_row(content, "one-shot", "one-shot + refit")
    feature = best_row(content, "one-shot", "one-shot + refit", basis="feature")
    if best is None or feature is None or not content["spaces"]:
        return ""
    mean = {name: entry["accuracy"]["mean"] for name, entry in content["methods"].items()}
    if best == feature:
        opening = f"The best single network, {best}, is a feature-basis one."
    else:
        gap = 100 * (mean[best] - mean[feature])
        opening = f"The best feature-basis network ({feature}) is {gap:.2f} points below the best single one ({best})."
    parts = []
    for name, space in content["spaces"].items():
        shares = {
            key: [seed["regime"][key] for seed in space["seeds"]] for key in ("permutation", "linear", "features")
        }
        explained = {key: float(np.mean(values)) for key, values in shares.items() if None not in values}
        unmatched = 1 - np.mean([min(seed["feature"]["matched_energy"]) for seed in space["seeds"]])
        parts.append(
            f"{name}: matched features explain {explained.get('features', float('nan')):.2f} of the reference's "
            f"held-out variance, the best permutation {explained['permutation']:.2f}, the best linear map "
            f"{explained['linear']:.2f}; {100 * unmatched:.0f} % of one client's code energy has no partner"
        )
    return opening + " Why: " + "; ".join(parts) + "."


def _mean(space: Mapping[str, Any], basis: str) -> float:
    return float(np.mean([seed[basis]["mean_correlation"] for seed in space["seeds"]]))


def _headline(content: Mapping[str, Any]) -> Section:
    methods = content["methods"]
    order = {"client": 0, "ensemble": 1, "one-shot": 2, "one-shot + refit": 3}
    names = sorted(methods, key=lambda name: (order[methods[name]["kind"]], -methods[name]["accuracy"]["mean"]))
    best = best_row(content, "one-shot", "one-shot + refit")
    rows, classes = [], []
    for name in names:
        entry = methods[name]
        rows.append(
            [
                name,
                f"{percent(entry['accuracy']['mean'])} ± {percent(entry['accuracy']['std'])}",
                _signed(entry["gap_to_best_client"]["mean"]),
                _signed(entry["gap_to_ensemble"]["mean"]),
                f"{entry['seconds']['mean']:.2f}",
                entry["summary"],
            ]
        )
        classes.append(f"{entry['basis']}{' best' if name == best else ''}")
    head = ["method", "accuracy, %", "to best client", "to ensemble", "seconds", "what it does"]
    return Section("Accuracy").table(head, rows, classes, wide=True)


def _signed(value: float) -> str:
    return f"{100 * value:+.2f}"


def _space(name: str, space: Mapping[str, Any]) -> Section:
    first = space["seeds"][0]
    regime = first["regime"]
    words = "<b>{name}</b>, recommended decode: <b>{recommended}</b>. {explanation}"
    named = {key: regime[key] for key in ("name", "recommended", "explanation")}
    section = Section(f"Space {name}").verdict(rich(words, **named))
    keys = (
        ("permutation", "best permutation"), ("orthogonal", "best rotation"), ("linear", "best linear map"),
        ("features", "matched features"),
    )  # fmt: skip
    explained = [[label, *_over_seeds(space, key)] for key, label in keys if regime.get(key) is not None]
    section.text(
        f"{first['size']} units, symmetry {first['symmetry']}. How much of the reference's variance "
        "client A's activations explain, held out:"
    ).table(["map", "explained variance", "seeds"], explained)
    rows = []
    for method, entry in first["ledger"].items():
        rows.append([method, *(f"{entry[k]:.3f}" for k in ("explained_variance", "commutation_defect", "round_trip"))])
    section.text(
        "What each method's maps keep: variance of the reference explained by the moved client, the nonlinearity's "
        "commutation defect, and what is lost going there and back."
    ).table(["method", "explained variance", "commutation defect", "round trip"], rows)
    plan = first["feature"]
    section.text(
        f"Feature plan: {plan['pairs']} pairs among {plan['alive'][0]} and {plan['alive'][1]} alive "
        f"latents, value {plan['value']:.4f}, lower bound {plan['lower_bound']:.4f}, gap {plan['gap']:.1e}; "
        f"{percent(plan['matched_energy'][0], 0)} % and {percent(plan['matched_energy'][1], 0)} % of the code "
        "energy is matched.",
        note=True,
    )
    return section


def _over_seeds(space: Mapping[str, Any], key: str) -> tuple[str, str]:
    values = [seed["regime"][key] for seed in space["seeds"] if seed["regime"].get(key) is not None]
    return f"{np.mean(values):.3f}", ", ".join(f"{value:.3f}" for value in values)


def _polysemanticity(content: Mapping[str, Any]) -> Section:
    return Section("Polysemanticity").text(
        rich(
            "Left: how many dictionary features one unit carries, <code>exp(H(r))</code> of variance shares. Right: "
            "class selectivity of units and of latents, and both after shuffling labels. Sparse codes are selective by "
            "chance more often than dense ones: compare each with its own null."
        )
    )


def _dictionaries(content: Mapping[str, Any]) -> Section:
    rows = [
        [
            client, space, entry["architecture"], f"{entry['units']} → {entry['width']}", f"{entry['k']:g}",
            f"{entry['explained_variance']['mean']:.3f} ± {entry['explained_variance']['std']:.3f}",
            f"{entry['l0']['mean']:.1f}", percent(entry["dead_fraction"]["mean"], 1),
        ]
        for client, spaces in content["dictionaries"].items()
        for space, entry in spaces.items()
    ]  # fmt: skip
    head = ["client", "space", "architecture", "width", "k", "explained variance", "L0", "dead, %"]
    return Section("Dictionaries").text("Measured on held-out activations of the client's own data.").table(head, rows)


def _data(content: Mapping[str, Any]) -> Section:
    section = Section("Clients and data")
    if not content["clients"][0]:
        return section.text("Modules and inputs given by the caller.")
    names = [str(c) for c in range(len(content["clients"][0][0]["counts"]))]
    rows = [[member["name"], member["samples"], *member["counts"]] for member in content["clients"][0]]
    return section.text("Label counts of each client, first seed.").table(["client", "samples", *names], rows)


def _provenance(content: Mapping[str, Any]) -> Section:
    versions = ", ".join(f"{name} {version}" for name, version in content["versions"].items())
    rows = [[name, value] for name, value in content["config"].items()]
    return (
        Section("How this page was made")
        .code("featalign compare --config config.toml --out NEW_FOLDER")
        .text(versions, note=True)
        .table(["option", "value"], rows)
    )
