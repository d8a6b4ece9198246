"""The browser of all features of a match: cards of every client's latents on the inputs that were read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from featalign.data.task import Task
from featalign.studies.features import FeatureCards, browser_content, feature_cards

if TYPE_CHECKING:
    from featalign.studies.match.result import Material, MatchResult

LOOKED = 4000  # inputs that cards are made from


def match_browser(result: MatchResult, task: Task | None = None) -> dict[str, Any]:
    """The widget `features` of a match; empty where no network showed where activations come from."""
    material = result.material
    if material is None or material.inputs is None or any(subject.model is None for subject in material.subjects):
        return {}
    cards = match_cards(material, task, result.config.seed)
    return {"browser": browser_content(cards, result.pairs, result.features)}


def match_cards(material: Material, task: Task | None = None, seed: int = 0) -> dict[tuple[str, str], FeatureCards]:
    """Cards by (client, site), on at most `LOOKED` of the inputs."""
    assert material.inputs is not None
    inputs = material.inputs.sample(LOOKED, seed) if material.inputs.sized else material.inputs
    options: dict[str, Any] = {"task": task, "tokenizer": material.tokenizer, "seed": seed}
    return {
        (subject.name, label): feature_cards(basis, subject.model, subject.sites[label], inputs, **options)
        for label in material.subjects[0].bases
        for subject, basis in ((subject, subject.bases[label]) for subject in material.subjects)
        if subject.model is not None
    }
