"""The comparison page: every word, unit and direction from the task, every number from the frames."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from featalign.fuse.fates import FATES
from featalign.report.page import Section, coded, page, paragraph, rich
from featalign.studies.compare.figures import FIGURES, figures, spaces_of
from featalign.studies.compare.words import by, distance, matched, shares, signed, value_of
from featalign.studies.result import config_dict, records, statistics, with_spread

if TYPE_CHECKING:
    from featalign.studies.compare.result import CompareResult

MAPS = (
    ("permutation", "best permutation"), ("orthogonal", "best rotation"), ("linear", "best linear map"),
    ("features", "matched features"),
)  # fmt: skip


def compare_page(result: CompareResult) -> str:
    """The page as HTML text."""
    drawn = figures(result)
    sections: list[Section | None] = [_scores(result), _methods(result)]
    if "mixing" in drawn:
        sections.append(
            Section("Mixing weight").text(
                "The headline uses one weight fixed beforehand. The whole curve is shown so that nobody has to trust a "
                "weight chosen on evaluation data."
                + (" Bars are standard deviations over seeds." if len(result.seeds) > 1 else "")
            )
        )
    sections += [_space(result, space) for space in spaces_of(result)]
    sections += [_fates(result), _browser(result), _polysemanticity(result), _dictionaries(result), _clients(result)]
    found = [section for section in sections if section is not None]
    _place(result, drawn, found)
    found += [_notes(result), _provenance(result)]
    return page(_title(result), _lead(result), found)


def _place(result: CompareResult, drawn: dict[str, Any], sections: list[Section]) -> None:
    """Every figure at the end of its section; sections that are not there yet come last."""
    by_title = {section.title: section for section in sections}
    for name in FIGURES:
        entry = FIGURES[name]
        if entry.each_space:
            places = [(f"{space}/{name}", f"Space {space}") for space in spaces_of(result)]
        else:
            places = [(name, entry.section)]
        for key, title in places:
            if key not in drawn:
                continue
            if title not in by_title:
                by_title[title] = Section(title)
                sections.append(by_title[title])
            by_title[title].figure(drawn[key])


def _title(result: CompareResult) -> str:
    if result.own:
        count = result.frames["clients"]["client"].nunique()
        return f"featalign: {count} network{'s' * (count != 1)} compared"
    config = result.config
    return f"featalign: {config.dataset}, {config.split}, {config.clients} client{'s' * (config.clients != 1)}"


def _lead(result: CompareResult) -> list[Markup]:
    """The finding in two or three sentences."""
    parts: list[Markup] = []
    client, fused = result.best("client"), result.best("one-shot", "one-shot + refit")
    table = result.to_frame()
    if client is not None:
        parts.append(rich("Best client alone {}.", value_of(result, client)))
    if "ensemble" in table.index and client is not None:
        parts.append(rich("Ensemble of all {}.", value_of(result, "ensemble")))
    for name, row in table.iterrows():
        if row["kind"] == "one-shot" and row["basis"] == "none":
            parts.append(
                rich("Averaging without alignment (<code>{}</code>) gives {}.", name, value_of(result, str(name)))
            )
    if fused is not None:
        words = "The best single fused network is <code>{}</code> with {}."
        parts.append(rich(words, fused, value_of(result, fused)))
    neuron, feature = (result.best("one-shot", "one-shot + refit", basis=basis) for basis in ("neuron", "feature"))
    if neuron is not None and feature is not None:
        words = (
            'Best in the <b class="neuron">neuron basis</b>: {} ({}); best in the '
            '<b class="feature">feature basis</b>: {} ({}).'
        )
        parts.append(rich(words, value_of(result, neuron), neuron, value_of(result, feature), feature))
    if len(set(result.frames["clients"]["client"])) == 1:
        parts.append(rich("One network alone: there is nothing to align or to fuse."))
    elif not spaces_of(result) and result.config.evidence:
        parts.append(rich("The networks have no hidden space: there is nothing to align."))
    found = [paragraph(Markup(" ").join(parts))] if parts else []
    if words := matched(result):
        found.append(paragraph(f"Mean correlation of matched pairs by space: {words}."))
    return [*found, paragraph(_conditions(result), note=True)]


def _conditions(result: CompareResult) -> str:
    config, seeds = result.config, len(result.seeds)
    parts = [f"{seeds} seed{'s' * (seeds != 1)}", f"{result.facts['probe']} unlabelled probe inputs"]
    if config.augment != "none":
        parts.append(f"extended to {config.augmented} by “{config.augment}”")
    parts.append(f"weight of the first client {result.facts['mixing']:.3g}")
    direction = "higher" if result.metric.higher_is_better else "lower"
    return (
        f"{', '.join(parts)}; no labels used in fusion, all refits see the same inputs. "
        f"{result.metric.name.capitalize()}: {direction} is better."
    )


def _scores(result: CompareResult) -> Section:
    metric, table = result.metric, result.to_frame()
    others = [each for each in result.metrics[1:] if not result.frames["scores"].empty]
    more = {each.name: result.to_frame(each.name) for each in others}
    rows, classes = [], []
    best = result.best("one-shot", "one-shot + refit")
    for name, row in table.iterrows():
        values = [by(metric, row[metric.name], row["std"], int(row["seeds"]))]
        for each in others:
            own: dict[Any, Any] = more[each.name].loc[str(name)].to_dict()
            values.append(by(each, float(own[each.name]), float(own["std"]), int(own["seeds"])))
        gains = [signed(metric, row["to_best_client"]), signed(metric, row["to_ensemble"])]
        rows.append([name, *values, *gains, f"{row['seconds']:.2f}" if row["method"] else "–"])
        classes.append(f"{row['basis']}{' best' if name == best else ''}")
    labels = [each.label for each in (metric, *others)]
    head = ["network", *labels, "to best client", "to ensemble", "seconds"]
    section = Section("Scores").table(head, rows, classes)
    if not metric.higher_is_better:
        section.text(
            "Lower is better; gains over the best client and the ensemble are positive where better.", note=True
        )
    if why := distance(result):
        section.text(why)
    return section


def _methods(result: CompareResult) -> Section:
    """What every method does, and why some did not run."""
    frame = result.frames["methods"].sort_values("available", ascending=False, kind="stable")
    rows = [
        [row.method, coded(row.summary if row.available else f"{row.summary} Did not run: {row.reason.rstrip('.')}.")]
        for row in records(frame)
    ]
    missing = int((~frame["available"]).sum())
    words = f"{len(frame) - missing} of {len(frame)} registered methods ran on these networks." if missing else ""
    section = Section("Methods")
    return (section.text(words) if words else section).table(
        ["method", "what it does"], rows, list(frame["basis"]), wide=True
    )


def _space(result: CompareResult, space: str) -> Section:
    rows = result.frames["spaces"]
    rows = rows[rows["space"] == space]
    first = rows.iloc[0]
    section = Section(f"Space {space}")
    if first["regime"] is not None:
        words = "<b>{name}</b>, which speaks for <b>{recommended}</b> before any refit. {explanation}"
        explanation = first["explanation"][:1].upper() + first["explanation"][1:]
        section.verdict(rich(words, name=first["regime"], recommended=first["recommended"], explanation=explanation))
    sizes = dict.fromkeys((first["units_first"], first["units"]))
    section.text(f"{' to '.join(map(str, sizes))} units, symmetry {first['symmetry']}.")
    for note in dict.fromkeys(rows["note"]):
        if note:
            section.text(f"Not measured: {note}.", note=True)
    explained = [[label, *shares(rows[key])] for key, label in MAPS if rows[key].notna().any()]
    if explained:
        head = ["map", "explained variance", *(["by seed"] if len(rows) > 1 else [])]
        section.text("How much of the reference's variance the first client's activations explain, held out:")
        section.table(head, [row[: len(head)] for row in explained])
    _ledger(result, space, section)
    for match in records(result.frames["matches"]):
        if match.space == space and match.seed == rows["seed"].iloc[0] and match.basis == "feature":
            section.text(
                f"Feature plan: {match.pairs} pairs among {match.alive_first} and {match.alive} alive latents, value "
                f"{match.value:.4f}, lower bound {match.lower_bound:.4f}, gap {match.gap:.1e}; "
                f"{100 * match.energy_first:.0f} % and {100 * match.energy:.0f} % of the code energy is matched.",
                note=True,
            )
    return section


def _ledger(result: CompareResult, space: str, section: Section) -> None:
    frame = result.frames["ledger"]
    frame = frame[frame["space"] == space]
    if frame.empty:
        return
    names = ["explained_variance", "commutation_defect", "round_trip"]
    rows = []
    for name, group in frame.groupby("row", sort=False):
        found = [statistics(group[column]) for column in names]
        rows.append([name, *(with_spread(_three(m), _three(s), n) if n else "–" for m, s, n in found)])
    section.text(
        "What each method's maps keep: variance of the reference explained by the moved client, the nonlinearity's "
        "commutation defect, and what is lost going there and back."
    ).table(["method", "explained variance", "commutation defect", "round trip"], rows)


def _three(value: float) -> str:
    return f"{value:.3f}"


def _browser(result: CompareResult) -> Section | None:
    if "browser" not in result.widgets:
        return None
    words = (
        "Every latent of the first client and of the reference: the pairs that the feature plan matched, and what has "
        "no partner above chance. Choose one for its card: the same evaluation inputs side by side, how often and how "
        "strongly it fires, what it does to the outputs."
    )
    first = " Of the first seed." if len(result.seeds) > 1 else ""
    section = Section("Feature browser").text(words + first)
    return section.widget("features", "browser", result.widgets["browser"])


def _fates(result: CompareResult) -> Section | None:
    frame = result.frames["fates"]
    if frame.empty:
        return None
    section = Section("Features of the clients in the fused networks")
    rows = []
    for (name, client), group in frame.groupby(["row", "client"], sort=False):
        counts = group[[*FATES]].sum()
        shares = [f"{100 * counts[fate] / max(counts.sum(), 1):.1f}" for fate in FATES]
        rows.append([name, client, int(counts.sum()), *shares, f"{group['recovered'].mean():.2f}"])
    head = ["network", "client", "features", *(f"{fate}, %" for fate in FATES), "mean correlation"]
    section.text(
        "Fused activations are read linearly as each client's (fitted on one half of the probe, judged on the other) "
        "and encoded with its own dictionary. Kept: the feature fires where it did. Merged: so does the feature of "
        "another client that it is matched with. Absorbed, split: another feature, or several, fire in its place. "
        "Lost: none does. All spaces and seeds together."
    )
    return section.table(head, rows, wide=True)


def _polysemanticity(result: CompareResult) -> Section | None:
    units = result.frames["units"]
    if units.empty:
        return None
    section = Section("Polysemanticity")
    words = "How many dictionary features one unit carries, <code>exp(H(r))</code> of variance shares."
    if units["measure"].str.contains("selectivity").any():
        words += (
            " Beside it the class selectivity of units and of latents, and both after shuffling labels. Sparse codes "
            "are selective by chance more often than dense ones: compare each with its own null."
        )
    return section.text(rich(words))


def _dictionaries(result: CompareResult) -> Section | None:
    frame = result.frames["dictionaries"]
    if frame.empty:
        return None
    rows = []
    for (client, space, architecture), group in frame.groupby(["client", "space", "architecture"], sort=False):
        first = group.iloc[0]
        variance, std, count = statistics(group["explained_variance"])
        rows.append(
            [
                client, space, architecture, f"{first['units']} → {first['width']}", f"{first['k']:g}",
                with_spread(_three(variance), _three(std), count), f"{group['l0'].mean():.1f}",
                f"{100 * group['dead_fraction'].mean():.1f}", _budget(first),
            ]
        )  # fmt: skip
    head = ["client", "space", "architecture", "width", "k", "explained variance", "L0", "dead, %", "rows per latent"]
    words = (
        "Measured on held-out activations of the client's own data. Rows per latent: training rows over latents; "
        "capped where the data carry fewer latents than wanted, narrow where there are fewer than the layer has units."
    )
    return Section("Dictionaries").text(words).table(head, rows)


def _budget(row: Any) -> str:
    """Data behind a dictionary, in a cell."""
    words = f"{row['trained_on'] / row['width']:.0f}" if row["trained_on"] else "–"
    words += f", capped from {row['capped_from']}" if row["capped_from"] else ""
    return words + (", narrow" if row["width"] < row["units"] else "")


def _clients(result: CompareResult) -> Section | None:
    frame = result.frames["clients"]
    frame = frame[(frame["seed"] == frame["seed"].min()) & frame["label"].notna()]
    if frame.empty:
        return None
    labels = list(dict.fromkeys(frame["label"]))
    rows = []
    for client, group in frame.groupby("client", sort=False):
        counts = group.set_index("label")["count"]
        rows.append([client, group["samples"].iloc[0], *(counts.get(name, 0) for name in labels)])
    first = ", first seed" if len(result.seeds) > 1 else ""
    section = Section("Clients and data").text(f"Label counts of each client{first}.")
    return section.table(["client", "samples", *labels], rows)


def _notes(result: CompareResult) -> Section:
    section = Section("Notes")
    for note in result.facts["notes"]:
        section.text(note)
    if not result.facts["notes"]:
        section.text("None: everything that was asked for could be measured.")
    return section


def _provenance(result: CompareResult) -> Section:
    section = Section("How this page was made")
    if not result.own:
        section.code("featalign compare --config config.toml --out NEW_FOLDER")
    versions = ", ".join(f"{name} {version}" for name, version in result.facts["versions"].items())
    rows = [[name, _option(value)] for name, value in config_dict(result.config).items()]
    return section.text(versions, note=True).table(["option", "value"], rows)


def _option(value: Any) -> str:
    if value is None:
        return "default"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "default"
    return (", ".join(f"{k}: {v}" for k, v in value.items()) or "default") if isinstance(value, dict) else str(value)
