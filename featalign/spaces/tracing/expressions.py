"""What an elementwise chain of operations computed: the nonlinearity between two tensors, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from featalign.spaces.graph import Step

Version = tuple[int, int]  # a tensor's id and how often it was written in place

LEARNED = ("prelu", "_prelu_kernel")  # slopes are weights of one network
_PLAIN = (bool, int, float, str, type(None))


@dataclass(frozen=True)
class Made:
    """How a tensor came to be: an elementwise operation and its arguments, tensors by their version.

    Attributes:
        operation: name and overload (`gelu.default`); '' for what is not elementwise.
        versions: of the tensors among the arguments, by their id.
        constants: ids of the tensors that do not depend on the input.
    """

    operation: str
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[int, Version] = field(default_factory=dict)
    constants: frozenset[int] = frozenset()


class _NotElementwise(Exception):
    """The chain holds something that is no function of one number."""


def between(before: Version, after: Version, made: Mapping[Version, Made]) -> tuple[Step, ...] | None:
    """The steps that compute `after` from `before`, entry by entry; None where anything else takes part."""
    steps: list[Step] = []
    place: dict[Version, int] = {before: 0}

    def argument(value: Any, source: Made) -> Any:
        if isinstance(value, torch.Tensor):
            version = source.versions[id(value)]
            if version in place or version in made:
                return (visit(version),)
            learned = isinstance(value, torch.nn.Parameter)  # of this network alone (slopes of PReLU)
            if id(value) in source.constants and value.numel() == 1 and value.device.type != "meta" and not learned:
                return value.item()
            raise _NotElementwise
        if isinstance(value, (torch.dtype, torch.device, torch.memory_format, torch.layout)):
            return value
        if not isinstance(value, _PLAIN):
            raise _NotElementwise
        return value

    def visit(version: Version) -> int:
        if version not in place:
            source = made.get(version)
            if source is None or not source.operation or source.operation.startswith(LEARNED) or len(place) > 40:
                raise _NotElementwise
            if source.operation.startswith("log_sigmoid_forward"):  # without the buffer for its gradient
                source = replace(source, operation="log_sigmoid.default")
            args = tuple(argument(value, source) for value in source.args)
            kwargs = tuple((key, argument(value, source)) for key, value in sorted(source.kwargs.items()))
            steps.append(Step(source.operation, args, kwargs))
            place[version] = len(steps)
        return place[version]

    try:
        visit(after)
    except _NotElementwise:
        return None
    return tuple(steps)
