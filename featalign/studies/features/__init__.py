"""Features that can be read: cards of every latent of a dictionary, and the content of the page's feature browser."""

from featalign.studies.features.cards import FeatureCards, feature_cards
from featalign.studies.features.content import browser_content
from featalign.studies.features.neuronpedia import to_neuronpedia

__all__ = ["FeatureCards", "browser_content", "feature_cards", "to_neuronpedia"]
