"""The page of a match: what was found beside its controls, pairs, own features, and the dictionaries it rests on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from featalign.report.page import Section, page, paragraph
from featalign.studies.match.result import sentence
from featalign.studies.result import config_dict

if TYPE_CHECKING:
    from featalign.studies.match.result import MatchResult

SHOWN = 40  # rows of a table; the files beside the page hold all


def match_page(result: MatchResult) -> str:
    """The page as HTML text."""
    figures = result.figures
    sections = [_verdicts(result)]
    if result.widgets:
        sections.append(_browser(result))
    for place in result.places:
        sections.append(_comparison(result, place, figures))
    sections += [_clients(result), _quality(result), _limits(result), _provenance(result)]
    lead = [paragraph(_lead(result)), paragraph(_conditions(result), note=True)]
    return page(f"Features of {result.facts['title']}", lead, [section for section in sections if section])


def _browser(result: MatchResult) -> Section:
    """All features with their cards."""
    words = (
        "Every latent with the inputs that drive it most and a few of ordinary strength; click one to see its partner "
        "on the same inputs beside it. Columns are those of the tables below."
    )
    return Section("Features").text(words).widget("features", "match", result.widgets["browser"])


def _lead(result: MatchResult) -> str:
    clients = result.facts["clients"]
    return (
        f"Which latents of {', '.join(clients[:-1])} and {clients[-1]} are one feature, and which are one client's own?"
    )


def _conditions(result: MatchResult) -> str:
    config = result.config
    if result.facts["compared"] != "codes":
        return "No inputs were given: latents are compared by the geometry of their decoders alone. " + " ".join(
            f"{note}." for note in result.facts["notes"]
        )
    where = "held out from the dictionaries" if result.facts["trained_here"] else "given"
    rows = int(result.quality["rows"].max())
    return (
        f"Score: correlation of two latents' codes on {rows} rows of activations that were {where}. A pair has at "
        f"least {config.minimum:g} and beats {100 * config.quantile:g} % of the best matches found after the samples "
        f"of one client were shuffled. Latents active on fewer than {config.firings} rows count as dead."
    )


def _verdicts(result: MatchResult) -> Section:
    section = Section("What was found")
    for place in result.places:
        section.verdict(sentence(result, *place))
    rows = []
    for row in _records(result.summary):
        rows.append([
            row["site"], f"{row['client_a']}, {row['client_b']}", _CONTROLS[row["control"]],
            *(_number(row[name]) for name in ("mcc", "mmcs", "mmcs_back", "shared", "pw_mcc")),
            _share(row["coverage_a"]), _share(row["coverage_b"]), _number(row["gap"], ".2g"),
        ])  # fmt: skip
    head = ["site", "clients", "", "MCC", "MMCS", "MMCS back", "shared", "PW-MCC", "cover A", "cover B", "gap"]
    return section.table(head, rows).text(
        "MCC: mean score of the best one-to-one matching of alive latents, over the smaller dictionary. MMCS: mean of "
        "each latent's best score, A to B and back. Shared: matched at .7 or more. PW-MCC: mean cosine of decoder "
        "directions in their best matching; it means something for clients of one ancestry. Cover: share of the code "
        "energy in latents that are in a pair. Gap: by how much the plan behind the pairs may cost more than the best.",
        note=True,
    )


_CONTROLS = {"none": "found", "shuffled": "shuffled", "untrained": "untrained dictionaries"}


def _comparison(result: MatchResult, place: tuple[str, str, str], figures: dict[str, Any]) -> Section:
    site, a, b = place
    section = Section(f"{a} and {b} at {site}")
    name = "/".join(place)
    if f"{name}/scores" in figures:
        section.figure(figures[f"{name}/scores"]).text(
            "Latents of both clients. Dotted: the least score of a pair. Chance: after the samples of one client were "
            "shuffled (without inputs: after its directions were).",
            note=True,
        )
    section.figure(figures[f"{name}/flow"]).text(
        "Alive and dead latents of either client. Split: one of the left, several of the right; merged: the reverse.",
        note=True,
    )
    frame = result.pairs
    here = frame[(frame["site"] == site) & (frame["client_a"] == a) & (frame["client_b"] == b)]
    here = here.sort_values("energy", ascending=False, kind="stable")
    groups = here[here["kind"] != "matched"]
    if len(groups):
        section.text("Splits and merges, by energy:").table(*_pair_table(groups, a, b, True))
    section.text(f"Pairs, by energy{_cut(len(here))}:").table(
        *_pair_table(here[here["kind"] == "matched"], a, b, False)
    )
    return section


def _pair_table(frame: pd.DataFrame, a: str, b: str, groups: bool) -> tuple[list[str], list[list[Any]]]:
    head = [a, b, "score", "rival", "null", "gain", "energy", "overlap", *(["kind", "together"] if groups else [])]
    rows = []
    for row in _records(frame.head(SHOWN)):
        numbers = [_number(row[name]) for name in ("score", "rival", "null", "gain")]
        cells = [row["latent_a"], row["latent_b"], *numbers, _share(row["energy"]), _number(row["overlap"])]
        rows.append([*cells, *([row["kind"], _number(row["together"])] if groups else [])])
    return head, rows


def _clients(result: MatchResult) -> Section:
    section = Section("Own features")
    own = result.own
    for (site, client), group in own.groupby(["site", "client"], sort=False):
        rows = [
            [r["latent"], _share(r["density"], 2), _number(r["mean"]), _share(r["energy"]), _number(r["score"]),
             _number(r["relative_norm"]), _number(r["latent_scaling"])]
            for r in _records(group.head(SHOWN))
        ]  # fmt: skip
        head = ["latent", "density", "mean", "energy", "best score", "relative norm", "latent scaling"]
        section.text(f"{client} at {site}: {len(group)} in no pair, by energy{_cut(len(group))}:").table(head, rows)
    if own.empty:
        section.text("Every latent that is alive is in a pair.")
    words = (
        "Best score: the nearest latent of any other client. Relative norm and latent scaling come from a dictionary "
        "trained on all clients at once (witness='crosscoder'): the share of the decoder norms that this client has, 1 "
        "only here; and how strongly others hold the feature, with the shrinkage of training undone, 0 only here."
    )
    return section.text(words, note=True)


def _quality(result: MatchResult) -> Section:
    rows = []
    for row in _records(result.quality):
        trained = "given" if pd.isna(row["trained_rows"]) else f"{row['trained_rows']} rows"
        rows.append([
            row["site"], row["client"], f"{row['latents']} {row['architecture']}", row["units"],
            _number(row["explained_variance"], ".3f"), _number(row["l0"], ".1f"), _share(row["dead_fraction"]),
            _number(row["loss_recovered"], ".3f"), row["rows"], f"{row['rows_per_latent']:.1f}", trained,
            row["measured_on"],
        ])  # fmt: skip
    head = ["site", "client", "latents", "units", "explained", "L0", "never active", "loss recovered", "rows"]
    return Section("Dictionary quality").table([*head, "rows per latent", "trained on", "measured on"], rows)


def _limits(result: MatchResult) -> Section:
    section = Section("What this cannot say")
    for words in (
        "Codes that go together on these inputs need not do so on others: a pair is a claim about these inputs.",
        "A feature that a client's dictionary did not learn is missing here even where the network has it. Two seeds "
        "of one client agree only in part: match them with each other to see how much is the dictionary's choice.",
        *(f"{note}." for note in result.facts["notes"]),
    ):
        section.text(words)
    cycles = result.frames["cycles"]
    if len(cycles):
        rows = [
            [
                r["site"],
                r["clients"],
                r["matching"],
                _number(r["consistency"]),
                _number(r["null"]),
                _share(r["coverage"]),
            ]
            for r in _records(cycles)
        ]
        section.text("Around three clients, the share of latents that come back to themselves:")
        section.table(["site", "clients", "matching", "consistent", "null", "matched all the way"], rows)
    return section


def _provenance(result: MatchResult) -> Section:
    versions = ", ".join(f"{name} {version}" for name, version in result.facts["versions"].items())
    rows = [[name, str(value)] for name, value in config_dict(result.config).items() if value not in (None, "", [])]
    return Section("How this page was made").text(versions, note=True).table(["option", "value"], rows)


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(key): value for key, value in row.items()} for row in frame.to_dict(orient="records")]


def _cut(count: int) -> str:
    return f", the first {SHOWN} of {count}" if count > SHOWN else ""


def _number(value: Any, form: str = ".2f") -> str:
    return "–" if pd.isna(value) else format(float(value), form)


def _share(value: Any, digits: int = 1) -> str:
    return "–" if pd.isna(value) else f"{100 * float(value):.{digits}f} %"
