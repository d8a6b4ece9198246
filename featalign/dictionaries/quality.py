"""Quality of a dictionary on given activations."""

from __future__ import annotations

import torch

from featalign.dictionaries.dictionary import Dictionary, Quality
from featalign.dictionaries.rows import Activations, as_rows
from featalign.spaces.moments import Moments

SEEN = 2**18  # rows that dead latents are counted over


def assess(
    dictionary: Dictionary, inputs: Activations, targets: Activations, held: torch.Tensor | None = None
) -> Quality:
    """Quality on activations `inputs [..., n]`, reconstruction compared with `targets [..., m]`.

    `held` names the rows that explained variance and L0 are measured on (all by default); dead latents are counted
    over every row, of more than `SEEN` over those and the first ones.
    """
    inputs, targets = as_rows(inputs, dictionary.metadata), as_rows(targets, dictionary.metadata)
    chosen = torch.zeros(len(inputs), dtype=torch.bool)
    chosen[held if held is not None else slice(None)] = True
    mean = Moments()
    for part in chosen.nonzero().flatten().split(2048):
        mean.update(targets[part])
    error = total = active = 0.0
    seen = 0
    fired = torch.zeros(dictionary.width, dtype=torch.bool)
    for x, y, keep in zip(inputs.split(2048), targets.split(2048), chosen.split(2048)):
        if seen >= SEEN:
            if not keep.any():
                continue
            x, y, keep = x[keep], y[keep], keep[keep]
        seen += len(x)
        codes = dictionary.encode(x)
        fired |= (codes > 0).any(0).cpu()
        if keep.any():
            codes, y = codes[keep], y[keep].to(codes.device)
            error += float((y - dictionary.decode(codes, like=x[keep])).double().pow(2).sum())
            total += float((y.double() - mean.mean.to(y.device)).pow(2).sum())
            active += float((codes > 0).sum())
    count = int(chosen.sum())
    explained = 1 - error / total if total > 0 else float("nan")
    return Quality(explained, active / count, float((~fired).float().mean()), seen, count)
