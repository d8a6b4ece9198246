"""Run a module once under the tracer, and say in one line what stands in the way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from featalign.errors import TraceError
from featalign.spaces.attention import layer_by_layer
from featalign.spaces.capture import evaluating, outputs_of
from featalign.spaces.graph import Symmetry
from featalign.spaces.structures import fitted, outputs_in, require_weights, tensors_in
from featalign.spaces.tracing.tracer import Tracer


def arguments(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of an example: a tensor, a tuple of arguments or a mapping of keywords."""
    if isinstance(example, Mapping):
        return (), dict(example)
    return (example if isinstance(example, tuple) else (example,)), {}


def run(module: nn.Module, example: Any, partial: bool = False) -> Tracer:
    """Run `module` once on `example`.

    Raises `TraceError` when the module fails on the example, reads its own data, draws random numbers that change its
    outputs, has no parameters, or returns what cannot be followed.
    """
    require_weights(module)
    tracer = Tracer(module, partial)
    args, kwargs = arguments(fitted(example, module))
    mask = tensors_in(kwargs.get("attention_mask"))  # what padding a batch has changes no space: code may look at it
    inputs = [tensor for tensor in tensors_in([list(args), kwargs]) if all(tensor is not known for known in mask)]
    if not inputs:
        raise TraceError("the example holds no tensor; pass a tensor, a tuple of arguments or a dict of keywords")
    tracer.pin_input(inputs)
    try:
        with _hooked(module, tracer), evaluating(module), tracer:
            outputs = module(*args, **kwargs)
    except TraceError:
        raise
    except Exception as error:
        where = tracer.stack[-1] if tracer.stack and tracer.stack[-1] else type(module).__name__
        reason = str(error).strip().partition("\n")[0]
        shapes = ", ".join(f"{str(t.dtype).removeprefix('torch.')} {list(t.shape)}" for t in inputs)
        raise TraceError(
            f"'{where}' failed on the example input {shapes}: {type(error).__name__}: {reason}; "
            "pass an input of the shape and type that the network takes"
        ) from error
    found = outputs_in(outputs)
    if not any(id(tensor) in tracer.values for tensor in found):
        raise TraceError(
            "no output of the module was computed from the example by operations on tensors (arrays, files and "
            "constants cannot be followed); return the tensor itself"
        )
    for tensor in found:
        for dim in tracer.value(tensor).dims:
            dim.constrain(Symmetry.PINNED)
    if tracer.random:
        _require_repeatable(module, example, tracer)
    return tracer


@contextmanager
def _hooked(module: nn.Module, tracer: Tracer) -> Iterator[None]:
    """The tracer's hooks on every submodule, and attention on its plain path; undone whatever happens."""
    handles: list[Any] = []
    try:
        for name, part in module.named_modules():
            handles.append(part.register_forward_pre_hook(tracer.enter(name)))
            handles.append(part.register_forward_hook(tracer.leave(name)))
        with layer_by_layer():
            yield
    finally:
        for handle in handles:
            handle.remove()


def _require_repeatable(module: nn.Module, example: Any, tracer: Tracer) -> None:
    """Random numbers that change the outputs are refused (noted with `partial`): masks would look like structure."""
    first, second = outputs_of(module, example), outputs_of(module, example)
    if all(torch.equal(a, b) for a, b in zip(first, second, strict=True)):
        return
    where, operation = next(iter(tracer.random.items()))
    message = f"{where} draws random numbers ('{operation}') in eval mode, and the outputs of two calls differ"
    if not tracer.partial:
        raise TraceError(f"{message}; switch that off, or seed it inside forward")
    tracer.warn(message)
