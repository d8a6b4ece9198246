"""The nonlinearity of a space, evaluated on any pre-activations: tanh, GELU, Hardswish, or whatever the network has."""

from __future__ import annotations

from typing import Any

import torch

from featalign.errors import SpaceMismatch
from featalign.spaces.graph import Space


def apply_nonlinearity(space: Space, pre: torch.Tensor) -> torch.Tensor:
    """What the network makes of pre-activations `[..., units]` between `space.before` and `space.after`, elementwise.

    The identity for linear spaces; computed in the type of `pre`. Raises `SpaceMismatch` where it is no function of one
    number (gates, normalisations, learned slopes per unit), and for hand-written spaces that do not name it.
    """
    if space.nonlinearity is None:
        raise SpaceMismatch(
            f"what lies between '{space.before}' and '{space.after}' of space '{space.name}' is no elementwise "
            "function of one number (a gate, a normalisation or learned slopes): compare activations behind it instead"
        )
    results = [pre]
    for step in space.nonlinearity:
        name, _, overload = step.operation.partition(".")
        function = getattr(getattr(torch.ops.aten, name), overload)

        def value(argument: Any) -> Any:
            return results[argument[0]] if isinstance(argument, tuple) else argument

        results.append(function(*map(value, step.args), **{key: value(v) for key, v in step.kwargs}))
    return results[-1]
