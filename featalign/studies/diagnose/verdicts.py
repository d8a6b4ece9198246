"""The two verdicts, superposed and changed by training, and what units carry: each with its control, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from featalign import measure
from featalign.measure.score import Score, resampled
from featalign.measure.scores import MatchScores
from featalign.studies.diagnose.rows import DictionaryRow

MARGIN = 0.05  # explained variance by which a dictionary must beat random directions to be read
LEAST = 1.25  # ratio to the control below which a difference is a tie: two draws of random weights differ by a tenth
SAME = 0.8  # cosine from which a direction of one seed is found again in another
SLACK = 1.25  # latents per unit that superposition needs to show itself
MODEL, WEIGHTS, SAMPLES = "model", "shuffled weights", "shuffled samples"
DRAW = "shuffled weights, draw "  # names of the second and later draws
RANDOM, RANDOM_WEIGHTS = "random directions", "random directions, shuffled weights"


@dataclass(frozen=True)
class Verdict:
    """Yes, no or unknown, and why."""

    answer: str
    words: str


def found_again(atoms: torch.Tensor, match: MatchScores) -> np.ndarray:
    """`[F]` 1 for each direction that another seed's dictionary has too, by their `match`, once for each line.

    Matched one to one at a cosine of `SAME`; of atoms opposite or close to each other the first one counts.
    """
    counted = np.zeros(len(atoms))
    unit = torch.nn.functional.normalize(atoms.double(), dim=1)
    lines = (unit @ unit.T).abs() > SAME
    for index in match.pairs[match.similarity >= SAME, 0]:
        if not counted[lines[index].numpy()].any():
            counted[index] = 1
    return counted


def apart(values: np.ndarray, control: np.ndarray) -> bool:
    """Whether the 95 % bootstrap interval of the difference of two means excludes zero."""
    if min(len(values), len(control)) < 2:
        return False
    difference = resampled(values, np.mean, 0) - resampled(control, np.mean, 1)
    low, high = np.quantile(difference, [0.025, 0.975])
    return bool(low > 0 or high < 0)


def superposed(
    again: np.ndarray | None, control: np.ndarray | None, varying: int, dictionaries: Mapping[str, DictionaryRow]
) -> tuple[Verdict, Score]:
    """More directions than units come out of two seeds, and more than when the units' samples are shuffled?

    Args:
        again, control: `found_again` here and in the control; None where there is one seed.
    """
    nothing = measure.mean_score([])
    own = dictionaries[MODEL]
    if again is None or control is None:
        return Verdict("unknown", "Superposed: not measured, which takes dictionaries of two seeds."), nothing
    scale = len(again) / max(varying, 1)
    score = measure.mean_score(again)
    null = float(control.mean()) * len(control) / max(varying, 1)
    low, high = (scale * bound for bound in score.interval)
    score = Score(scale * score.value, null, (low, high), score.coverage, score.count)
    seeds = tuple(name for name in dictionaries if name.startswith(f"{MODEL}, seed"))
    stands = quality_words(dictionaries, (MODEL, *seeds, RANDOM, SAMPLES))
    if own.width < SLACK * varying:
        words = (
            f"Superposed: cannot be told with {own.width} latents for {varying} units that vary; it takes at least "
            f"{int(np.ceil(SLACK * varying))} ({stands})."
        )
        return Verdict("unknown", words), score
    if not readable(dictionaries, MODEL):
        words = f"Superposed: unknown, for the dictionary explains no more than random directions do ({stands})."
        return Verdict("unknown", words), score
    count, other = int(again.sum()), int(control.sum())
    facts = (
        f"{count} different directions come out of two trainings alike, in {varying} units that vary; with each unit's "
        f"samples shuffled, {other} do ({stands})."
    )
    if low > 1 and score.value > null and apart(again, control):
        return Verdict("yes", f"Superposed: more features than units. {facts}"), score
    why = "no more than there are units" if count <= varying else "not clearly more than units, or than in the control"
    return Verdict("no", f"Superposed: no evidence, {why}. {facts}"), score


def changed(
    effective: np.ndarray, controls: Sequence[np.ndarray], dictionaries: Mapping[str, DictionaryRow]
) -> Verdict:
    """Do units carry another number of features than in networks with shuffled weights?

    Args:
        effective: features of each ranked unit; controls: the same, one array for each draw of shuffled weights.
    """
    if not controls or WEIGHTS not in dictionaries:
        return Verdict("unknown", "Changed by training: unknown, for the layer is dead when weights are shuffled.")
    stands = quality_words(dictionaries, (MODEL, WEIGHTS, RANDOM))
    for name in (MODEL, WEIGHTS):
        if not readable(dictionaries, name):
            which = "this layer" if name == MODEL else "the layer with shuffled weights"
            return Verdict(
                "unknown", f"Changed by training: unknown, the dictionary of {which} cannot be read ({stands})."
            )
    if min(len(effective), *map(len, controls)) < 2:
        return Verdict("unknown", f"Changed by training: unknown, fewer than two units fire often enough ({stands}).")
    mean, others = float(effective.mean()), [float(control.mean()) for control in controls]
    low, high = min(others), max(others)
    spread = f" ({len(others)} draws, {low:.1f} to {high:.1f})" if len(others) > 1 else ""
    facts = (
        f"a unit carries {mean:.1f} features on average, {sum(others) / len(others):.1f} with shuffled weights{spread} "
        f"({stands})."
    )
    beyond = mean > LEAST * high or LEAST * mean < low
    if beyond and all(apart(effective, control) for control in controls):
        word = "more" if mean > high else "fewer"
        return Verdict("yes", f"Changed by training: yes, units carry {word} features than without it: {facts}")
    return Verdict(
        "no",
        f"Changed by training: no evidence, a tie (less than a quarter from one of the draws, or by chance): {facts}",
    )


def meaning(
    effective: np.ndarray, kinds: np.ndarray, columns: np.ndarray | None, dictionaries: Mapping[str, DictionaryRow]
) -> str:
    """What units carry. Monosemantic is said only where the inputs agree: a dictionary cannot see what a unit sums.

    Args:
        effective, kinds, columns: of the ranked units; NaN where unknown.
    """
    if len(effective) == 0:
        return "Units: none fires often enough to be ranked."
    if not readable(dictionaries, MODEL):
        stands = quality_words(dictionaries, (MODEL, RANDOM))
        return (
            f"Units: what they carry cannot be read, for the dictionary is no better than random directions ({stands})."
        )
    many = int((effective >= 2).sum())
    known = np.isfinite(kinds)
    single = (effective < 1.5) & known & (kinds < 1.5)
    single &= True if columns is None else columns < 1.5
    mixed = (effective < 2) & known & ~single
    words = f"Units: {many} of {len(effective)} carry two or more features of the dictionary"
    words += f"; {int(single.sum())} are monosemantic: one feature, and one kind of input drives them"
    if mixed.any():
        words += f"; {int(mixed.sum())} carry fewer than two features, yet several kinds of inputs drive them"
    unknown = int(((effective < 2) & ~known).sum())
    if unknown:
        words += f"; of {unknown} with fewer than two it is not known how many kinds of inputs drive them"
    return f"{words} ({quality_words(dictionaries, (MODEL, RANDOM))})."


def about_classes(
    latents: Score | None, units: Score | None, changed_by_training: str, dictionaries: Mapping[str, DictionaryRow]
) -> str:
    """Whether latents are about classes, against shuffled labels and without learning."""
    if latents is None or units is None:
        return "Classes: not measured, for the task gives no class per input."
    stands = quality_words(dictionaries, (MODEL, RANDOM))
    if not readable(dictionaries, MODEL):
        return f"Classes: no evidence, for the dictionary is no better than random directions ({stands})."
    figures = (
        f"selectivity of latents {latents.value:.2f} (shuffled labels {latents.null:.2f}), of units {units.value:.2f} "
        f"({units.null:.2f}; {stands})"
    )
    if not latents.evidence or latents.value <= latents.null:
        return f"Classes: no evidence that latents select classes: {figures}."
    if changed_by_training != "yes":
        return f"Classes: latents select classes, but so they may by the inputs alone, with nothing learned: {figures}."
    return f"Classes: latents select classes: {figures}."


def readable(dictionaries: Mapping[str, DictionaryRow], name: str) -> bool:
    """Whether a dictionary explains more than random directions of the same network do."""
    own, random = dictionaries[name], dictionaries[RANDOM_WEIGHTS if name == WEIGHTS else RANDOM]
    return own.explained_variance > max(0.0, random.explained_variance) + MARGIN


def quality_words(dictionaries: Mapping[str, DictionaryRow], names: tuple[str, ...]) -> str:
    """The explained variance of the dictionaries that a sentence rests on."""
    labels = {MODEL: "its dictionary", RANDOM: "random directions", WEIGHTS: "that of shuffled weights"}
    labels |= {SAMPLES: "that of shuffled samples"}
    labels |= {name: f"that of {name.removeprefix(f'{MODEL}, ')}" for name in names if name not in labels}
    parts = [
        f"{labels[name]} {100 * dictionaries[name].explained_variance:.0f} %" for name in names if name in dictionaries
    ]
    return f"{dictionaries[MODEL].measured_on} variance explained: {', '.join(parts)}"
