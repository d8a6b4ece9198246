"""The page's browser of a match: a card for every latent of every client, partners side by side."""

from __future__ import annotations

from typing import Any

from featalign.errors import FeatalignError
from featalign.studies.features import FeatureCards, browser_content, feature_cards
from featalign.studies.match.result import MatchResult

COMPARED = {
    "codes": {},
    "cosine": {"score": "cosine of the decoder directions"},
    "gromov": {"score": "agreement of the cosines with all other latents"},
}


def content(result: MatchResult, count: int) -> tuple[dict[str, Any], list[str]]:
    """What the widget reads, and notes; empty where there are no networks and inputs to show latents on.

    Cards look through at most `count` of the inputs.
    """
    material = result.material
    if count == 0 or material is None or material.inputs is None:
        return {}, []
    inputs = material.inputs.sample(count, seed=result.config.seed) if material.inputs.sized else material.inputs
    cards: dict[tuple[str, str], FeatureCards] = {}
    try:
        for subject in material.subjects:
            for label, basis in subject.bases.items():
                assert subject.model is not None
                cards[subject.name, label] = feature_cards(
                    basis, subject.model, subject.sites[label], inputs, tokenizer=material.tokenizer
                )
        pairs = result.pairs.drop(columns="together")
        features = result.features.drop(columns=["relative_norm", "latent_scaling"])
        features["partner"] = features["partner"].fillna(-1).astype("int64")
        features["partner_client"] = features["partner_client"].fillna("")
        features["note"] = [_words(norm, scaling) for norm, scaling in _witness(result)]
        terms = {(a, b): COMPARED[result.facts["compared"]] for _, a, b in result.places}
        return browser_content(cards, pairs, features, terms=terms), []
    except FeatalignError as error:
        return {}, [f"latents are shown without cards: {error}"]


def _witness(result: MatchResult) -> list[tuple[float, float]]:
    return list(result.features[["relative_norm", "latent_scaling"]].itertuples(index=False, name=None))


def _words(norm: float, scaling: float) -> str:
    if norm != norm or scaling != scaling:
        return ""
    return f"crosscoder: {100 * norm:.0f} % of the decoder norm here; held elsewhere at {scaling:.2f} of its strength"
