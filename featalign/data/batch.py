"""Arguments of one call of a module, and the tensor among what it returns."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from featalign.errors import ProbeError

OUTPUTS = ("logits", "prediction_logits", "last_hidden_state", "sample")  # fields that hold a model's output


@dataclass(frozen=True)
class Batch:
    """Arguments of one call of a module, and what its outputs are compared with.

    Attributes:
        args, kwargs: positional and keyword arguments; tensors have the samples first.
        targets: of these samples, or None.
    """

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    targets: Any = None

    @property
    def tensors(self) -> list[torch.Tensor]:
        """The tensors among the arguments, each `[batch, ...]`."""
        return [value for value in (*self.args, *self.kwargs.values()) if isinstance(value, torch.Tensor)]

    @property
    def size(self) -> int:
        """Samples; raises `ProbeError` where no argument is a tensor."""
        if not self.tensors:
            kinds = ", ".join(type(value).__name__ for value in (*self.args, *self.kwargs.values())) or "nothing"
            raise ProbeError(f"a batch of {kinds} holds no tensor; pass batches of tensors [samples, ...]")
        return len(self.tensors[0])

    @property
    def mask(self) -> torch.Tensor | None:
        """`attention_mask [samples, tokens]` as booleans, where there is one."""
        mask = self.kwargs.get("attention_mask")
        return None if mask is None else mask.bool()

    @property
    def tokens(self) -> torch.Tensor | None:
        """Token ids `[samples, tokens]`: `input_ids`, or the one integer argument."""
        ids = self.kwargs.get("input_ids", self.args[0] if self.args else None)
        return ids if isinstance(ids, torch.Tensor) and not ids.is_floating_point() and ids.dim() == 2 else None

    @property
    def self_labelled(self) -> bool:
        """Whether the targets are the input tokens themselves (some masked), as `transformers` wants them."""
        tokens, targets = self.tokens, self.targets
        if tokens is None or not isinstance(targets, torch.Tensor) or targets.shape != tokens.shape:
            return False
        same = targets == tokens.to(targets.device)
        return bool((same | (targets < 0)).all()) and bool(same.any())

    @property
    def example(self) -> Any:
        """The arguments as tracing takes them: a tensor, a tuple, or a mapping of keyword arguments."""
        if self.kwargs and not self.args:
            return dict(self.kwargs)
        return self.args[0] if len(self.args) == 1 else self.args

    def cut(self, count: int) -> Batch:
        """The first `count` samples."""
        return self.map(lambda tensor: tensor[:count])

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        """The batch with `change` applied to every tensor `[batch, ...]` of arguments and targets."""

        def each(value: Any) -> Any:
            return change(value) if isinstance(value, torch.Tensor) else value

        kwargs = {key: each(value) for key, value in self.kwargs.items()}
        return Batch(tuple(each(value) for value in self.args), kwargs, each(self.targets))

    def on(self, module: nn.Module) -> Batch:
        """The batch on the module's device; floating-point arguments follow its dtype.

        `input_ids` become the first argument of a module that has no such name; `token_type_ids`, which tokenizers add
        unasked, are left out where it has none.
        """
        if unknown := self._unknown(module):
            return self._suited(unknown).on(module)
        parameter = next((p for p in module.parameters() if p.is_floating_point()), None)
        if parameter is None:
            return self
        device, dtype = parameter.device, parameter.dtype
        return self.map(lambda t: t.to(device, dtype) if t.is_floating_point() else t.to(device))

    def _unknown(self, module: nn.Module) -> set[str]:
        """Names of tokenizers that the module does not take."""
        named = {"input_ids", "token_type_ids"} & set(self.kwargs)
        if not named or self.args:
            return set()
        parameters = inspect.signature(module.forward).parameters.values()
        unknown = named - {parameter.name for parameter in parameters}
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            return unknown
        plain = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        first = next((parameter for parameter in parameters if parameter.kind in plain), None)
        required = first is not None and first.default is first.empty
        return unknown & {"input_ids"} if required else set()  # the rest goes on to the network that is wrapped

    def _suited(self, unknown: set[str]) -> Batch:
        args = (self.kwargs["input_ids"],) if "input_ids" in unknown else ()
        return Batch(args, {key: value for key, value in self.kwargs.items() if key not in unknown}, self.targets)

    def run(self, module: nn.Module) -> Any:
        """`module(*args, **kwargs)` after `on(module)`."""
        ready = self.on(module)
        return module(*ready.args, **ready.kwargs)


def unwrap(outputs: Any) -> torch.Tensor:
    """The output tensor of a module: itself, `.logits` (or another known field), or the first tensor of a tuple.

    Of whatever shape the module gives, `[samples, ...]`. Raises `ProbeError` for an object that names no output.
    """
    if isinstance(outputs, torch.Tensor):
        return outputs
    for name in OUTPUTS:
        found = outputs.get(name) if isinstance(outputs, Mapping) else getattr(outputs, name, None)
        if isinstance(found, torch.Tensor):
            return found
    if isinstance(outputs, Mapping):
        outputs = tuple(outputs.values())
    elif dataclasses.is_dataclass(outputs) or hasattr(outputs, "__dict__"):
        outputs = tuple(vars(outputs).values())
    if isinstance(outputs, (tuple, list)):
        for item in outputs:
            if isinstance(item, torch.Tensor) and item.dim():  # a number is a loss, not an output
                return item
    raise ProbeError(
        f"a module returned {type(outputs).__name__}, in which no tensor and no `.logits` was found; wrap it in a "
        "module that returns the output tensor"
    )
