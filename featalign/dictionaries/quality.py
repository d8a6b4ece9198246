"""Quality of a dictionary on given activations."""

from __future__ import annotations

import torch

from featalign.dictionaries.dictionary import Dictionary, Quality
from featalign.dictionaries.rows import Activations, as_rows


def assess(
    dictionary: Dictionary, inputs: Activations, targets: Activations, held: torch.Tensor | None = None
) -> Quality:
    """Quality on activations `inputs [..., n]`, reconstruction compared with `targets [..., m]`.

    `held` names the rows that explained variance and L0 are measured on (all by default); dead latents are counted
    over every row.
    """
    inputs, targets = as_rows(inputs, dictionary.metadata), as_rows(targets, dictionary.metadata)
    chosen = torch.zeros(len(inputs), dtype=torch.bool)
    chosen[held if held is not None else slice(None)] = True
    mean = targets[chosen].double().mean(0)
    error = total = active = 0.0
    fired = torch.zeros(dictionary.width, dtype=torch.long)
    for x, y, keep in zip(inputs.split(2048), targets.split(2048), chosen.split(2048)):
        codes = dictionary.encode(x)
        fired += (codes > 0).sum(0)
        if keep.any():
            y = y[keep]
            error += float((y - dictionary.decode(codes)[keep]).double().pow(2).sum())
            total += float((y.double() - mean).pow(2).sum())
            active += float((codes[keep] > 0).sum())
    count = int(chosen.sum())
    explained = 1 - error / total if total > 0 else float("nan")
    return Quality(explained, active / count, float((fired == 0).float().mean()), len(inputs), count)
