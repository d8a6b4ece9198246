"""Read activations of any module, batch by batch, without gradients and in eval mode."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from featalign.errors import NotFinite, ProbeError, SpaceMismatch
from featalign.spaces.graph import Site

Inputs = torch.Tensor | Iterable[Any]
BATCH_BYTES = 64_000_000  # activations of one client held at a time; patches of convolutions take some ten times more


def batches(inputs: Inputs, batch_size: int = 2048) -> Iterator[torch.Tensor]:
    """Batches of a tensor `[samples, ...]` or of a loader whose items are tensors or tuples that start with one."""
    empty = True
    if isinstance(inputs, torch.Tensor):
        for chunk in inputs.split(batch_size):
            empty = empty and len(chunk) == 0
            yield chunk
    else:
        for item in inputs:
            empty = False
            yield item[0] if isinstance(item, (tuple, list)) else item
    if empty:
        raise ProbeError("the probe set is empty; pass a tensor [samples, ...] or a loader with at least one batch")


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients inside, the training flags of every submodule restored after."""
    training = {name: part.training for name, part in module.named_modules()}
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for name, part in module.named_modules():
            part.training = training[name]


def units_last(activations: torch.Tensor, channels_first: bool) -> torch.Tensor:
    """`[samples * positions, units]` from `[N, C, *positions]` (channels first) or `[N, *positions, units]`."""
    if channels_first and activations.dim() > 2:
        activations = activations.movedim(1, -1)
    return activations.reshape(-1, activations.shape[-1])


def units_of(activations: torch.Tensor, site: Site) -> torch.Tensor:
    """`[samples * positions * copies, units]` of a site that names its dimension."""
    moved = activations.movedim(site.dim or 0, -1)
    if site.size is None:
        return moved.reshape(-1, moved.shape[-1])
    length = site.tile * site.size * site.repeat
    part = moved[..., site.offset : site.offset + length]
    return part.reshape(-1, site.tile, site.size, site.repeat).movedim(2, -1).reshape(-1, site.size)


def first_tensor(value: Any) -> torch.Tensor:
    """The tensor itself, or the first one of a tuple, list or mapping (model outputs with named fields)."""
    if isinstance(value, Mapping):
        value = tuple(value.values())
    return first_tensor(value[0]) if isinstance(value, (tuple, list)) else value


def stream(
    module: nn.Module, inputs: Inputs, sites: Sequence[Site], batch_size: int = 2048
) -> Iterator[tuple[torch.Tensor, dict[Site, torch.Tensor]]]:
    """Yield `(outputs, {site: activations [samples, units]})` for each batch.

    Convolutional activations give one row per sample and position, token sequences one row per token.
    Raises `SpaceMismatch` for an unknown submodule and `NotFinite` when a site holds NaN or infinity.
    """
    modules = dict(module.named_modules())
    for site in sites:
        if site.module not in modules:
            raise SpaceMismatch(f"no submodule '{site.module}' to read activations from")
    held: dict[Site, torch.Tensor] = {}

    def keep(site: Site, convolution: bool, value: Any) -> None:
        tensor = first_tensor(value).detach().clone()  # a nonlinearity in place would overwrite what is held
        held[site] = units_last(tensor, convolution) if site.dim is None else units_of(tensor, site)

    handles = []
    for site in sites:
        part = modules[site.module]
        conv = isinstance(part, (nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm))
        if site.side == "in":
            hook: Any = lambda _m, args, s=site, c=conv: keep(s, c, args[0])  # noqa: E731
            handles.append(part.register_forward_pre_hook(hook))
        else:
            hook = lambda _m, _args, out, s=site, c=conv: keep(s, c, out)  # noqa: E731
            handles.append(part.register_forward_hook(hook))
    try:
        for batch in batches(inputs, batch_size):
            held.clear()
            with evaluating(module):  # around the call alone: a suspended generator must not keep gradients off
                outputs = first_tensor(module(batch))
            for site, activations in held.items():
                if not torch.isfinite(activations).all():
                    raise NotFinite(f"activations at '{site}' hold NaN or infinity; check the client's weights")
            yield outputs, dict(held)
    finally:
        for handle in handles:
            handle.remove()


def fitting_batch(module: nn.Module, inputs: Inputs, sites: Sequence[Site]) -> int:
    """Inputs per batch, so that one module's activations at all sites stay within `BATCH_BYTES`; 16 to 2048.

    Batches of a loader are what they are.
    """
    if not isinstance(inputs, torch.Tensor) or len(inputs) == 0:
        return 2048
    _, held = next(stream(module, inputs[:2], sites))
    size = sum(tensor.nbytes for tensor in held.values()) // min(2, len(inputs))
    return max(16, min(2048, BATCH_BYTES // max(size, 1)))


def collect(
    module: nn.Module, inputs: Inputs, sites: Sequence[Site], batch_size: int = 2048
) -> dict[Site, torch.Tensor]:
    """Activations `[samples, units]` of each site for the whole probe; use `stream` when they do not fit in memory."""
    parts: dict[Site, list[torch.Tensor]] = {site: [] for site in sites}
    for _, held in stream(module, inputs, sites, batch_size):
        for site, activations in held.items():
            parts[site].append(activations)
    return {site: torch.cat(chunks) for site, chunks in parts.items() if chunks}
