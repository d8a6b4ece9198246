"""The page of a diagnosis: verdicts first, each beside the quality of the dictionaries that it rests on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from featalign.data.task import TASKS, Metric
from featalign.report.page import Section, page, paragraph, rich
from featalign.studies.diagnose.config import MEASURED
from featalign.studies.result import config_dict

if TYPE_CHECKING:
    from featalign.studies.diagnose.result import DiagnoseResult

NAMES = {
    "directions": (
        "directions found again, per unit",
        "directions that the dictionaries of two seeds both have (cosine at least .8, one for each line), over the "
        "units that vary; above 1 there are more features than units. Null: the same with each unit's samples "
        "shuffled.",
    ),
    "effective": (
        "features that a unit carries",
        "exp(H): the exponential of the entropy of the shares that latents have in a unit's variance; 1 for one "
        "latent, 3 for three alike. Mean over the ranked units. Null: the network with shuffled weights.",
    ),
    "psi": (
        "effective features per unit of the layer",
        "psi: exp(H) of the shares that latents have in the layer's activity, over its units. It depends on the width "
        "of the dictionary: read the curve, where there is one. Null: the network with shuffled weights.",
    ),
    "consistency": (
        "seeds agree",
        "mean cosine of the latents of one seed's dictionary with their partners in the others'. Null: random "
        "directions.",
    ),
    "privileged": (
        "kurtosis of units",
        "excess kurtosis, 0 for a Gaussian: above its null, units are special directions. Null: the layer rotated at "
        "random.",
    ),
    "unit_selectivity": (
        "class selectivity of units",
        "(m - r) / (m + r), m the mean activation on the best class and r on the others; 1 for one class alone. Null: "
        "shuffled labels.",
    ),
    "latent_selectivity": ("class selectivity of latents", "the same of latents. Null: shuffled labels."),
    "unit_probing": (
        "one unit tells a class",
        "balanced accuracy of the best single unit for each class, held-out half, mean over classes; .5 is chance. "
        "Null: shuffled labels.",
    ),
    "latent_probing": ("one latent tells a class", "the same of latents. Null: shuffled labels."),
}


def diagnosis_page(result: DiagnoseResult) -> str:
    """The page as HTML text."""
    sections: list[Section | None] = [_verdicts(result)]
    if result.widgets:
        sections.append(_browser(result))
    figures = result.figures
    for name in result.layers:
        section = Section(f"Layer {name}")
        _measures(result, name, section)
        for key, words in _CAPTIONS.items():
            if f"{name}/{key}" in figures:
                section.figure(figures[f"{name}/{key}"]).text(words, note=True)
        sections.append(section)
    sections += [_dictionaries(result), _function(result), _limits(result), _provenance(result)]
    title = f"Polysemanticity of {result.facts['title']}"
    return page(
        title, [paragraph(_lead(result)), paragraph(_conditions(result), note=True)], [s for s in sections if s]
    )


_CAPTIONS = {
    "effective": "Ranked units. Features of a unit: exp(H) of the shares of its variance, see the table.",
    "firing": "Latents of the dictionary that is shown, on the samples that everything is measured on.",
    "psi": "Each point is a dictionary that was trained shortly; bars span its seeds. L0 is the mean number of active "
    "latents per sample. A layer's features are not one number: they depend on width and sparsity.",
    "pareto": "On a tenth of the training rows that these dictionaries were not trained on; bars span the seeds.",
}


def _lead(result: DiagnoseResult) -> str:
    layers = result.frames["layers"]
    layers = layers[layers["note"] == ""]
    count = len(layers)
    parts = [f"{count} hidden layer{'s' * (count != 1)} diagnosed."]
    for column, word in (("superposed", "superposed"), ("changed", "changed by training")):
        found = layers[column].value_counts()
        said = [f"{found[key]} {label}" for key, label in _ANSWERS.items() if key in found]
        parts.append(f"{word.capitalize()}: {', '.join(said)}.")
    return " ".join(parts)


_ANSWERS = {"yes": "yes", "no": "no evidence", "unknown": "cannot be told"}


def _conditions(result: DiagnoseResult) -> str:
    facts, config = result.facts, result.config
    dictionaries = f"Dictionaries from {len(config.seeds)} seed{'s' * (len(config.seeds) != 1)}"
    if not facts["held_out"]:
        return (
            f"{dictionaries}, trained on {facts['inputs']} inputs. Everything is measured on the same inputs: figures "
            "are on training data."
        )
    seen = "which the dictionaries were not trained on; whether the network was is not known"
    if facts["network_saw_held_out"] == "no":
        seen = "which neither the network nor the dictionaries were trained on"
    return (
        f"{dictionaries}, trained on {facts['inputs']} inputs. Held out means: measured on {facts['held_out']} other "
        f"inputs, {seen}. Units and latents that fire on fewer than {100 * config.firing_rate:g} % of the samples (or "
        "fewer than three) are left out of rankings and means."
    )


def _verdicts(result: DiagnoseResult) -> Section:
    section = Section("Verdicts")
    for name in result.layers:
        row = result.layer(name)
        silent = row["units"] - row["varying"]
        counts = f"{row['units']} units" + (f", {silent} of them constant" if silent else "")
        section.text(rich("<b>{}</b> ({}, {} ranked)", name, counts, row["ranked"]))
        section.verdict(row["superposition"]).verdict(row["training"])
        section.text(f"{row['meaning']} {row['classes']}")
        section.text(f"Data: {row['budget']}.", note=True)
    missing = result.frames["layers"]
    missing = missing[missing["note"] != ""]
    if len(missing):
        section.text("Not diagnosed:").table(
            ["layer", "units", "why"],
            [[row["layer"], row["units"], row["note"]] for row in _records(missing)],
            wide=True,
        )
    return section


def _browser(result: DiagnoseResult) -> Section:
    content = result.widgets["browser"]
    words = (
        "Every unit and every feature of the dictionary. A unit is linked to the features that make up its variance: "
        "matched where it is one and the feature lives on this unit alone, split where the unit carries several, "
        "merged where the feature is spread over several units. Under “show” also the features that the dictionary of "
        "another seed, or another network, has as well. Units are read by how far they are above their median. Cards "
        f"look through {result.facts['inputs_of_cards']} inputs"
    )
    if result.facts["network_saw_held_out"] != "no":
        words += ", those that dictionaries were trained on included"
    return Section("Units and features").text(f"{words}.").widget("features", "diagnosis", content)


def _measures(result: DiagnoseResult, layer: str, section: Section) -> None:
    rows = []
    for key, (label, meaning) in NAMES.items():
        row = result.measure(layer, key)
        if row is None or pd.isna(row["value"]):
            continue
        null = "–" if pd.isna(row["null"]) else f"{row['null']:.2f}"
        interval = f"{row['low']:.2f} to {row['high']:.2f}"
        mark = "" if row["evidence"] or null == "–" else "No evidence: the interval covers the null. "
        rows.append([label, f"{row['value']:.2f}", interval, null, row["count"], mark + meaning])
    words = (
        f"On at most {MEASURED} rows. Interval: 95 % bootstrap over the items behind a value (units, latents, samples "
        "or classes). Null: what the "
        "same gives where there is nothing to find."
    )
    section.text(words).table(["measure", "value", "interval", "null", "items", "what it is"], rows, wide=True)


def _dictionaries(result: DiagnoseResult) -> Section:
    rows = []
    for row in _records(result.frames["dictionaries"]):
        name = f"{row['network']}{', given: what it was trained on is not known' if row['given'] else ''}"
        rows.append([
            row["layer"], name, row["seed"], f"{row['width']} {row['architecture']}", f"{row['k']:g}",
            f"{row['l0']:.1f}", f"{row['explained_variance']:.3f}",
            f"{100 * row['dead_fraction']:.1f} % in {row['seen']}", f"{row['gain']:.3f}", f"{row['redundant']:.3f}",
        ])  # fmt: skip
    where = result.frames["dictionaries"]["measured_on"]
    place = "held-out samples" if len(where) and where.iloc[0] == "held-out" else "the training samples"
    words = (
        f"Every dictionary that a sentence rests on, measured on {place}. k: active latents asked for; L0: mean number "
        "of active latents; explained: share of the activations' variance; dead: latents that never fire, and in how "
        "many samples; gain: least-squares slope of the reconstruction, below 1 where it is too small; redundant: "
        "share of the latents with another at a cosine above .9. Shuffled weights and shuffled samples are the "
        "controls of the two verdicts."
    )
    head = ["layer", "of", "seed", "latents", "k", "L0", "explained", "dead", "gain", "redundant"]
    return Section("Dictionary quality").text(words).table(head, rows)


def _function(result: DiagnoseResult) -> Section | None:
    frame = result.frames["function"]
    if frame.empty:
        return None
    metrics = _metrics(result)
    rows = []
    for layer, group in frame.groupby("layer", sort=False):
        found = {row["metric"]: row for row in _records(group)}
        recovered = found["recovered"]["spliced"] if "recovered" in found else float("nan")
        cells: list[Any] = [layer, f"{recovered:.3f}" if recovered == recovered else "– (the mean costs nothing)"]
        for name, metric in metrics.items():
            row = found.get(name, {})
            cells.append(
                " / ".join(metric.shown(row[key]) for key in ("network", "spliced", "ablated")) if row else "–"
            )
        cells.append(f"{found['kl']['spliced']:.3g}" if "kl" in found else "–")
        rows.append(cells)
    where = "held-out inputs" if result.facts["held_out"] else "the training inputs"
    words = (
        f"What the network keeps on {where} when the layer is replaced: as it is / by its dictionary's reconstruction "
        "/ by its mean. Loss recovered is 1 where the reconstruction costs nothing, 0 where it is no better than the "
        "mean; divergence: mean Kullback-Leibler divergence of the class distributions, nats."
    )
    head = ["layer", "loss recovered", *(metric.label for metric in metrics.values()), "divergence"]
    return Section("What the network keeps").text(words).table(head, rows)


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(key): value for key, value in row.items()} for row in frame.to_dict(orient="records")]


def _metrics(result: DiagnoseResult) -> dict[str, Metric]:
    """The task's metrics, and its loss."""
    task = result.facts["task"]
    known = {metric.name: metric for metric in (TASKS[task]().metrics if task in TASKS else ())}
    names = dict.fromkeys(result.frames["function"]["metric"])
    return {name: known.get(name, Metric(name)) for name in names if name not in ("recovered", "kl")}


def _limits(result: DiagnoseResult) -> Section:
    section = Section("What this cannot say")
    for words in (
        "What a dictionary leaves unexplained is invisible here, and so is what a unit sums: two unrelated inputs that "
        "always reach a layer through one unit look like one feature. Monosemantic is therefore said only of units "
        "whose driving inputs are of one kind: one significant direction of the inputs, weighed by the unit's "
        "activation (spike-triggered covariance). Where rows of activations tell no input that is not measured.",
        "Controls with shuffled weights keep the data's own structure and the scale of the weights; batch "
        "statistics are estimated again on the data. Differences from all draws are what training did. Shuffling each "
        "unit's "
        "samples keeps what units do alone; what is lost is what they do together.",
        "Partners on the cards are the best correlated latents of other dictionaries on the same inputs; a tie is "
        "within .01. The class effect is the mean change of each output when the latent is taken out where it fires.",
        *result.facts["notes"],
    ):
        section.text(words)
    return section


def _provenance(result: DiagnoseResult) -> Section:
    versions = ", ".join(f"{name} {version}" for name, version in result.facts["versions"].items())
    rows = [[name, _option(value)] for name, value in config_dict(result.config).items()]
    return Section("How this page was made").text(versions, note=True).table(["option", "value"], rows)


def _option(value: Any) -> str:
    if value in (None, "", 0) or value == [] or value == ():
        return "default"
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
