"""Word presence: real data in which the features are known, because they are the words."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from featalign.errors import BadOption, ProbeError

SENTENCE = re.compile(r"[.!?;:]+|\n\s*\n")
WORD = re.compile(r"[a-z]+(?:'[a-z]+)?")
HELD_OUT = 5  # every fifth sentence


@dataclass(frozen=True)
class Words:
    """Presence of known words in sentences.

    Attributes:
        vocabulary: `n` words, most frequent first.
        train, test: `[sentences, n]` of zeros and ones, float32; every fifth sentence is held out.
        works, work: names of the books, and the book of each training sentence `[sentences]`.
    """

    vocabulary: tuple[str, ...]
    train: torch.Tensor
    test: torch.Tensor
    works: tuple[str, ...]
    work: torch.Tensor

    @property
    def frequency(self) -> torch.Tensor:
        """Share of training sentences that hold each word, `[n]`."""
        return self.train.mean(0)

    def batches(self, rows: torch.Tensor | None = None) -> SentenceLaw:
        """A law for `train`: random training sentences, of the given rows `[n]` only if there are any."""
        return SentenceLaw(self.train if rows is None else self.train[rows])


@dataclass(frozen=True)
class SentenceLaw:
    """Draws rows of `data [sentences, n]` with replacement: `(count, generator) -> [count, n]`."""

    data: torch.Tensor

    def __call__(self, count: int, generator: torch.Generator) -> torch.Tensor:
        return self.data[torch.randint(len(self.data), (count,), generator=generator)]


def word_presence(texts: Mapping[str, str], size: int = 256, skip: int = 100) -> Words:
    """Presence matrix of `size` words of middling frequency in the sentences of `texts` (name of work -> text).

    The `skip` most frequent words (function words, in nearly every sentence) are left out; sentences without any of
    the words are dropped. Raises `BadOption` or `ProbeError` when the texts are too small for that.
    """
    if size < 2 or skip < 0:
        raise BadOption(f"{size} words after the first {skip}; give at least 2 words and no negative skip")
    sentences, origin = [], []
    for index, text in enumerate(texts.values()):
        found = [WORD.findall(part) for part in SENTENCE.split(text.lower())]
        sentences += [words for words in found if words]
        origin += [index] * sum(bool(words) for words in found)
    counts = Counter(word for words in sentences for word in set(words))
    vocabulary = [word for word, _ in counts.most_common(skip + size)][skip:]
    if len(vocabulary) < size:
        raise ProbeError(f"the texts have {len(counts)} different words; {skip + size} are needed")
    position = {word: index for index, word in enumerate(vocabulary)}
    rows = [(sorted({position[word] for word in words if word in position})) for words in sentences]
    kept = [index for index, row in enumerate(rows) if row]
    matrix = torch.zeros(len(kept), size)
    for target, index in enumerate(kept):
        matrix[target, rows[index]] = 1.0
    held = torch.arange(len(kept)) % HELD_OUT == HELD_OUT - 1
    work = torch.tensor([origin[index] for index in kept])
    return Words(tuple(vocabulary), matrix[~held], matrix[held], tuple(texts), work[~held])
