"""Networks of unequal depth: a shallower one is given layers that change nothing, so that every space has a partner.

A chain of linear layers takes identity layers, which an idempotent nonlinearity (ReLU) leaves alone; a residual stack
takes blocks that add nothing to their stream. What stands for what goes by relative depth. The result is checked: it
computes what it computed before, or it is refused.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from featalign.data.batch import Batch
from featalign.errors import FeatalignError
from featalign.spaces.apply import rebuilt
from featalign.spaces.capture import outputs_of
from featalign.spaces.check import output_change
from featalign.spaces.tracing import trace

EXACT = 1e-4  # relative change of outputs that float32 may make
NUMBERED = re.compile(r"^(?P<head>(?:.*?\.)?)(?P<index>\d+)\.(?P<tail>.+)$")
State = dict[str, torch.Tensor]


def equally_deep(modules: Sequence[nn.Module], example: Batch) -> list[nn.Module]:
    """The networks, shallower ones deepened to the deepest where that is possible; the others are as they are."""
    names = [tuple(module.state_dict()) for module in modules]
    if all(each == names[0] for each in names) or any(type(each) is not type(modules[0]) for each in modules):
        return list(modules)
    deepest = modules[max(range(len(modules)), key=lambda k: len(names[k]))]
    like = tuple(deepest.state_dict())
    return [each if tuple(each.state_dict()) == like else deepened(each, deepest, example) or each for each in modules]


def deepened(module: nn.Module, like: nn.Module, example: Batch) -> nn.Module | None:
    """A network of the architecture of `like` (widths aside) that computes what `module` does; None for no such one."""
    arguments = example.on(module).example
    before = outputs_of(module, arguments)
    for propose in (_chain, _blocks):
        try:
            state = propose(module, like, arguments)
            twin = None if state is None else rebuilt(like, state).eval()
            if twin is not None and output_change(before, outputs_of(twin, arguments)) <= EXACT:
                return twin
        except (FeatalignError, RuntimeError):  # sizes that do not fit each other
            continue
    return None


def stand_ins(few: int, many: int) -> list[int]:
    """For each of `many` places the one of `few` at the same relative depth, in order, each at least once."""
    if few == 1:
        return [0] * many
    return [round(place * (few - 1) / (many - 1)) for place in range(many)]


def _chain(module: nn.Module, like: nn.Module, arguments: Any) -> State | None:
    """Identity layers between the linear layers of a chain."""
    own, other = (_linear_chain(each, arguments) for each in (module, like))
    if own is None or other is None or not 1 < len(own) < len(other):
        return None
    source, state = module.state_dict(), like.state_dict()
    partners = [*stand_ins(len(own) - 1, len(other) - 1), len(own) - 1]
    for place, name in enumerate(other):
        partner = own[partners[place]]
        weight = source[f"{partner}.weight"]
        repeated = place > 0 and partners[place] == partners[place - 1]
        state[f"{name}.weight"] = torch.eye(len(weight), dtype=weight.dtype) if repeated else weight
        if f"{name}.bias" in state:
            bias = source.get(f"{partner}.bias")
            plain = repeated or bias is None
            state[f"{name}.bias"] = weight.new_zeros(len(weight)) if plain else bias
        elif f"{partner}.bias" in source:
            return None
    return state


def _linear_chain(module: nn.Module, arguments: Any) -> list[str] | None:
    """The linear layers in order, where the network has no other parameters."""
    layers = [layer.module for layer in trace(module, arguments).layers if layer.calls == 1]
    held = {f"{name}.{kind}" for name in layers for kind in ("weight", "bias")}
    plain = all(isinstance(module.get_submodule(name), nn.Linear) for name in layers)
    return layers if plain and set(module.state_dict()) <= held else None


def _blocks(module: nn.Module, like: nn.Module, arguments: Any) -> State | None:
    """Blocks that add nothing to the stream that they read."""
    source, state = module.state_dict(), like.state_dict()
    stream_writers = {
        axis.parameter
        for space in trace(like, arguments).hidden
        for axis in space.writers
        if len({block for other in space.writers if (block := _place(other.parameter))}) > 1
    }
    own, found = _stacks(source), _stacks(state)
    partners = {
        head: dict(zip(places, zip(stand_ins(len(own[head]), len(places)), _repeats(len(own[head]), len(places)))))
        for head, places in found.items()
        if head in own
    }
    for name in state:
        match = NUMBERED.match(name)
        if match is None or match["head"] not in partners:
            if name not in source:
                return None
            state[name] = source[name]
            continue
        partner, repeated = partners[match["head"]][int(match["index"])]
        tensor = source.get(f"{match['head']}{own[match['head']][partner]}.{match['tail']}")
        if tensor is None:
            return None
        state[name] = torch.zeros_like(tensor) if repeated and name in stream_writers else tensor
    return state


def _place(parameter: str) -> tuple[str, str] | None:
    match = NUMBERED.match(parameter)
    return None if match is None else (match["head"], match["index"])


def _stacks(state: State) -> dict[str, list[int]]:
    """Numbers in use behind each prefix of parameter names."""
    found: dict[str, set[int]] = defaultdict(set)
    for name in state:
        if (match := NUMBERED.match(name)) is not None:
            found[match["head"]].add(int(match["index"]))
    return {head: sorted(numbers) for head, numbers in found.items()}


def _repeats(few: int, many: int) -> Iterator[bool]:
    partners = stand_ins(few, many)
    yield from (place > 0 and partners[place] == partners[place - 1] for place in range(many))
