"""What each row of activations saw of its input."""

from __future__ import annotations

import torch

from featalign.data.inputs import Inputs
from featalign.studies.features.pictures import is_picture


def embedded(inputs: Inputs, origins: torch.Tensor | None) -> tuple[torch.Tensor | None, bool]:
    """What each row saw of the input, `[rows, d]`, and whether its columns mean something by themselves.

    The whole input where there is one row for each; the token where rows are tokens, one column for each of the most
    frequent ones. None for everything else.
    """
    if origins is None or not inputs.sized:
        return None, False
    example = inputs.example(1)
    if example.tokens is not None:
        ids = [batch.tokens for batch in inputs]
        if any(each is None or each.shape[1] != ids[0].shape[1] for each in ids):  # type: ignore[union-attr]
            return None, False
        tokens = torch.cat(ids)[origins[:, 0], origins[:, 1].clamp_max(ids[0].shape[1] - 1)]  # type: ignore[arg-type,union-attr]
        names, counts = tokens.unique(return_counts=True)
        common = names[counts.argsort(descending=True)[:256]]
        return (tokens[:, None] == common).float(), False
    if len(example.tensors) != 1 or not example.tensors[0].is_floating_point() or bool((origins[:, 1] > 0).any()):
        return None, False
    flat = torch.cat([batch.tensors[0].flatten(1).float().cpu() for batch in inputs])
    if flat.shape[1] > 4096:
        flat = torch.nn.functional.adaptive_avg_pool1d(flat[:, None], 1024)[:, 0]
    return flat[origins[:, 0]], not is_picture(example.tensors[0][0])
