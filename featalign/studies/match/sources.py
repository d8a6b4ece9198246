"""The networks and texts of `featalign match`: folders of language models, a file with one text per line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from featalign.errors import BadOption
from featalign.studies.language import language_model, lines_of
from featalign.studies.match.config import MatchRunConfig


def load_models(config: MatchRunConfig) -> tuple[list[nn.Module], Any, list[str] | None]:
    """The networks, the first one's tokenizer and the texts; nothing where none were named."""
    if not config.models:
        return [], None, None
    if not config.bases and not config.sites:
        raise BadOption("no dictionaries and no --site: say where they are to be trained")
    found = [language_model(Path(folder)) for folder in config.models]
    return [network for network, _ in found], found[0][1], lines_of(config.texts)
