"""Tensors inside whatever modules take and return: tuples, mappings, dataclasses, namespaces, output objects."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn

from featalign.errors import TraceError

_OPAQUE = (str, bytes, int, float, complex, bool, type(None), type, ModuleType, nn.Module, torch.dtype, torch.device)


def tensors_in(structure: Any) -> list[torch.Tensor]:
    """Tensors of nested tuples, lists and mappings, in order; other objects (caches) are skipped."""
    if isinstance(structure, torch.Tensor):
        return [structure]
    if isinstance(structure, Mapping):
        structure = list(structure.values())
    if isinstance(structure, (tuple, list)):
        return [tensor for item in structure for tensor in tensors_in(item)]
    return []


def fitted(example: Any, module: nn.Module) -> Any:
    """An example (nested arguments) on the module's device, floating-point tensors in the module's type.

    Types stay where the module mixes several.
    """
    parameters = [p for p in module.parameters() if p.is_floating_point()]
    if not parameters:
        return example
    device, dtypes = parameters[0].device, {p.dtype for p in parameters}

    def change(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            follows = value.is_floating_point() and len(dtypes) == 1
            return value.to(device, parameters[0].dtype if follows else value.dtype)
        if isinstance(value, Mapping):
            return {key: change(entry) for key, entry in value.items()}
        if type(value) in (tuple, list):
            return type(value)(change(entry) for entry in value)
        return value

    return change(example)


def outputs_in(outputs: Any) -> list[torch.Tensor]:
    """Every tensor that a module returned: also in dataclasses, namespaces and objects (caches of keys are no outputs).

    Raises `TraceError` for generators and arrays, whose numbers cannot be followed, and where there is no tensor.
    """
    found = list(_walk(outputs, set()))
    if not found:
        raise TraceError(
            f"the module returns {type(outputs).__name__}, in which no tensor was found; "
            "wrap it in a module that returns the output tensor"
        )
    return found


def _walk(value: Any, seen: set[int]) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
        return
    if isinstance(value, _OPAQUE) or id(value) in seen or type(value).__name__.endswith("Cache") or callable(value):
        return
    seen.add(id(value))
    if isinstance(value, (Iterator, np.ndarray)):
        raise TraceError(
            f"the module returns a {type(value).__name__}, whose numbers cannot be followed; "
            "wrap it in a module that returns tensors"
        )
    if isinstance(value, Mapping):
        children = list(value.values())
    elif isinstance(value, (tuple, list, Set)):
        children = list(value)
    else:
        slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
        fields = dict(getattr(value, "__dict__", {}))
        children = [*fields.values(), *(getattr(value, name, None) for name in slots)]
    for child in children:
        yield from _walk(child, seen)


def require_weights(module: nn.Module) -> None:
    """Raise `TraceError` for a module without floating-point parameters, or whose parameters hold no numbers."""
    count = 0
    for name, tensor in module.named_parameters():
        if nn.parameter.is_lazy(tensor):
            raise TraceError(f"'{name}' has no shape yet (a lazy module); run the module once before it is traced")
        if tensor.is_meta:
            raise TraceError(f"'{name}' is on the meta device and holds no numbers; load the weights first")
        count += tensor.numel() * tensor.is_floating_point()
    if count == 0:
        raise TraceError(f"a {type(module).__name__} without floating-point parameters has no basis to align")
