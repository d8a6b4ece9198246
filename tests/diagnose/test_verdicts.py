"""Verdicts from arrays alone: every draw of the control counts, every sentence carries its dictionaries' quality."""

import numpy as np
import pytest

from featalign.measure.score import Score
from featalign.studies.diagnose import verdicts
from featalign.studies.diagnose.rows import DictionaryRow
from featalign.studies.diagnose.verdicts import MODEL, RANDOM, RANDOM_WEIGHTS, SAMPLES, WEIGHTS


def table(explained=0.9):
    """Dictionaries of a layer; those of random directions explain a tenth."""
    found = {}
    for name, variance in ((MODEL, explained), (f"{MODEL}, seed 1", 0.8), (WEIGHTS, 0.7), (SAMPLES, 0.6),
                           (RANDOM, 0.1), (RANDOM_WEIGHTS, 0.1)):  # fmt: skip
        found[name] = DictionaryRow("fc1", name, 0, "topk", 40, 4.0, variance, 4.0, 0.0, 100, 100, 1.0, 0.0, "held-out")
    return found


def units(mean, seed=0):
    return mean + 0.2 * np.random.default_rng(seed).standard_normal(50)


@pytest.mark.parametrize(
    ("own", "controls", "answer"),
    [
        (3.0, (2.0, 2.1, 2.2), "yes"),
        (1.0, (2.0, 2.1, 2.2), "yes"),
        (3.0, (2.0, 2.1, 2.6), "no"),  # less than a quarter above one of the draws
        (2.0, (1.2, 3.0, 2.0), "no"),  # the draws differ more among themselves
        (2.2, (2.0,), "no"),
    ],
)
def test_a_difference_must_exceed_every_draw(own, controls, answer):
    found = verdicts.changed(units(own), [units(mean, k + 1) for k, mean in enumerate(controls)], table())
    assert found.answer == answer and "its dictionary 90 %" in found.words and "shuffled weights 70 %" in found.words
    if len(controls) > 1:
        assert f"({len(controls)} draws, {min(controls):.1f} to {max(controls):.1f})" in found.words
    assert ("a tie" in found.words) == (answer == "no")


def test_no_control_is_unknown_and_so_is_one_that_nobody_can_read():
    assert verdicts.changed(units(2.0), [], table()).answer == "unknown"
    unreadable = table() | {WEIGHTS: table(0.1)[MODEL]}
    assert verdicts.changed(units(3.0), [units(2.0)], unreadable).answer == "unknown"
    assert verdicts.changed(units(3.0)[:1], [units(2.0)], table()).answer == "unknown"


def test_every_sentence_stands_beside_the_quality_of_its_dictionaries():
    score = Score(0.5, 0.1, (0.4, 0.6), 1.0, 30)
    for quality in (table(), table(0.12)):
        words = (
            verdicts.superposed(np.ones(40), np.zeros(40), 30, quality)[0].words,
            verdicts.changed(units(2.0), [units(2.0)], quality).words,
            verdicts.meaning(units(2.0), np.ones(50), None, quality),
            verdicts.about_classes(score, score, "yes", quality),
        )
        share = round(100 * quality[MODEL].explained_variance)
        assert all(f"its dictionary {share} %" in text and "random directions 10 %" in text for text in words)
    assert "that of seed 1 80 %" in verdicts.superposed(np.ones(40), np.zeros(40), 30, table())[0].words
