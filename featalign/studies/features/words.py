"""What a list calls a feature and what a search finds it by: the words around the tokens that drive it most."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from featalign.report.pack import Strings
from featalign.studies.features.cards import FeatureCards

LONGEST = 24  # letters of a word
BLANK = {" ": "␣", "\n": "↵", "\t": "⇥"}
UNUSUAL = 0.5  # standard deviations from which a column names a feature


def words_of(card: FeatureCards, strings: Strings, columns: Sequence[str] = ()) -> np.ndarray:
    """`[F, K]` numbers of words in `strings`: of the top contexts, or of the unusual columns; 0 where there is none."""
    latents, count = card.top.value.shape
    found = np.zeros((latents, count), dtype=np.int64)
    if card.columns is not None:
        index, deviation = card.columns.index.tolist(), card.columns.deviation.tolist()
        for j in range(latents):
            for k in range(min(count, len(index[j]))):
                if index[j][k] >= 0 and abs(deviation[j][k]) > UNUSUAL:
                    arrow = "↑" if deviation[j][k] > 0 else "↓"
                    found[j, k] = strings.add(f"{column_name(columns, index[j][k])} {arrow}")
        return found
    if not card.top.tokens.shape[2]:
        return found
    names, half = card.vocabulary, card.half
    for j in card.alive.tolist():
        tokens, values = card.top.tokens[j].tolist(), card.top.value[j].tolist()
        for k, line in enumerate(tokens):
            if values[k] > float("-inf"):
                found[j, k] = strings.add(word_at([names[t] if t >= 0 else "\n" for t in line], half))
    return found


def column_name(columns: Sequence[str], index: int) -> str:
    """The name of a column of a table."""
    return str(columns[index]) if index < len(columns) else f"column {index}"


def word_at(tokens: Sequence[str], place: int) -> str:
    """The word, up to white space on both sides, that holds a token; a sign for a token that is white space."""
    own = tokens[place]
    if not own.strip():
        return "".join(BLANK.get(letter, letter) for letter in own[:3])
    left = right = place
    while left > 0 and not tokens[left][:1].isspace() and tokens[left - 1] and not tokens[left - 1][-1:].isspace():
        left -= 1
    while right + 1 < len(tokens) and tokens[right + 1] and not tokens[right][-1:].isspace():
        if tokens[right + 1][:1].isspace():
            break
        right += 1
    return "".join(tokens[left : right + 1]).strip()[:LONGEST]
