"""Run networks without gradients and read activations at their sites, batch by batch."""

from __future__ import annotations

import difflib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from featalign.data.batch import Batch, unwrap
from featalign.data.inputs import BATCH, Inputs
from featalign.errors import NotFinite, SpaceMismatch
from featalign.spaces.graph import Site
from featalign.spaces.structures import fitted, outputs_in, tensors_in

CHANNELS = (nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm)  # modules whose units lie along dimension 1
BATCH_BYTES = 64_000_000  # activations of one client held at a time; patches of convolutions take some ten times more
Held = dict[Site, torch.Tensor]


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


def outputs_of(module: nn.Module, example: Any) -> list[torch.Tensor]:
    """Every tensor that `module` returns on an example (tensor, tuple of arguments or mapping) in its own type."""
    example = fitted(example, module)
    with evaluating(module):
        if isinstance(example, Mapping):
            return outputs_in(module(**example))
        return outputs_in(module(*example) if isinstance(example, tuple) else module(example))


def units_last(activations: torch.Tensor, channels_first: bool) -> torch.Tensor:
    """`[samples * positions, units]` from `[N, C, *positions]` (channels first) or `[N, *positions, units]`."""
    if channels_first and activations.dim() > 2:
        activations = activations.movedim(1, -1)
    return activations.reshape(-1, activations.shape[-1])


def rows_at(activations: torch.Tensor, site: Site, channels_first: bool) -> torch.Tensor:
    """`[samples * positions * copies, units]` of what passes a site."""
    if site.heads:
        return activations.flatten(2).flatten(0, 1) if activations.dim() > 3 else units_last(activations, False)
    return units_last(activations, channels_first) if site.dim is None else _units_of(activations, site)


def _units_of(activations: torch.Tensor, site: Site) -> torch.Tensor:
    """`[samples * positions * copies, units]` of a site that names its dimension."""
    moved = activations.movedim(site.dim or 0, -1)
    if site.size is None:
        return moved.reshape(-1, moved.shape[-1])
    length = site.tile * site.size * site.repeat
    part = moved[..., site.offset : site.offset + length]
    return part.reshape(-1, site.tile, site.size, site.repeat).movedim(2, -1).reshape(-1, site.size)


def kept(tensor: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """`tensor [samples, tokens, ...]` without the padded tokens of `mask [samples, tokens]`, `[tokens kept, 1, ...]`.

    Tensors of another leading shape are returned as they are.
    """
    if mask is None or tensor.dim() < 3 or tensor.shape[:2] != mask.shape:
        return tensor
    return tensor[mask.to(tensor.device)].unsqueeze(1)


def stream(
    module: nn.Module, inputs: Any, sites: Sequence[Site], batch_size: int | None = None
) -> Iterator[tuple[torch.Tensor, Held]]:
    """Yield `(outputs, {site: activations [samples, units]})` for each batch of `inputs` (see `data.Inputs`).

    Batches are those of the `Inputs` unless `batch_size` says otherwise.

    Convolutional activations give one row per sample and position, token sequences one row per token that the batch's
    `attention_mask` keeps (outputs stay whole: `kept` drops the same rows). A module that runs several times gives the
    rows of all its calls, one call after another. Activations are float32, or float64 where the network is.
    Raises `SpaceMismatch` for an unknown submodule, and one that never runs or that shows no tensor there;
    `NotFinite` when a site holds NaN or infinity.
    """
    with _hooks(module, sites) as calls:
        whole = Inputs.of(inputs)
        for batch in whole if batch_size is None else whole.batched(batch_size):
            calls.clear()
            with evaluating(module):  # around the call alone: a suspended generator must not keep gradients off
                outputs = unwrap(batch.run(module))
            held = {site: _rows(module, site, calls.pop(site, ()), batch) for site in dict.fromkeys(sites)}
            yield outputs, held


@contextmanager
def _hooks(module: nn.Module, sites: Sequence[Site]) -> Iterator[dict[Site, list[torch.Tensor]]]:
    """What passes the sites, call by call; hooks are removed whatever happens."""
    calls: dict[Site, list[torch.Tensor]] = defaultdict(list)

    def keep(site: Site, value: Any) -> None:
        calls[site] += [tensor.detach().clone() for tensor in tensors_in(value)[:1]]  # relu_ would overwrite it

    handles = []
    try:
        for site in dict.fromkeys(sites):
            part = require_module(module, site.module)
            if site.side == "in":
                hook = lambda _m, args, kwargs, s=site: keep(s, (args, kwargs))  # noqa: E731
                handles.append(part.register_forward_pre_hook(hook, with_kwargs=True))
            else:
                handles.append(part.register_forward_hook(lambda _m, _args, out, s=site: keep(s, out)))
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def require_module(module: nn.Module, name: str) -> nn.Module:
    """The submodule of that name (also by a bridge's other names); raises `SpaceMismatch` with the nearest names."""
    try:
        found = module.get_submodule(name)
    except AttributeError:
        known = [path for path, _ in module.named_modules() if path]
        near = ", ".join(difflib.get_close_matches(name, known, 3, 0.3) or known[:5]) or "none"
        raise SpaceMismatch(f"no submodule '{name}' to read activations from; near it: {near}") from None
    return found


def _rows(module: nn.Module, site: Site, calls: Sequence[torch.Tensor], batch: Batch) -> torch.Tensor:
    """`[samples, units]` of all calls, float32 or float64."""
    if not calls:
        raise SpaceMismatch(f"nothing is seen at '{site}': it does not run by itself, or passes no plain tensor there")
    part = module.get_submodule(site.module)
    channels = isinstance(part, CHANNELS)
    parts = []
    for tensor in calls:
        if site.dim is None or site.dim > 1:
            tensor = kept(tensor, batch.mask)
        parts.append(rows_at(tensor, site, channels))
    rows = parts[0] if len(parts) == 1 else torch.cat(parts)
    rows = rows if rows.dtype is torch.float64 else rows.float()
    if not (rows.sum().isfinite() or torch.isfinite(rows).all()):  # the sum of finite rows may overflow
        raise NotFinite(f"activations at '{site}' hold NaN or infinity; check the network's weights and inputs")
    return rows


def units_at(module: nn.Module, batch: Batch) -> dict[str, int]:
    """Units at the output of every submodule that runs once and shows one tensor of samples, by its path."""
    paths = [name for name, _ in module.named_modules() if name]
    with _hooks(module, [Site(name) for name in paths]) as calls, evaluating(module):
        batch.run(module)
    found = {}
    for name in paths:
        shown = calls[Site(name)]
        if len(shown) == 1 and shown[0].dim() > 1 and len(shown[0]) == batch.size and shown[0].is_floating_point():
            channels = isinstance(module.get_submodule(name), CHANNELS)
            found[name] = shown[0].shape[1 if channels else -1]
    return found


def fitting_batch(module: nn.Module, inputs: Any, sites: Sequence[Site]) -> int:
    """Inputs per batch, so that one module's activations at all sites stay within `BATCH_BYTES`; 1 to 2048.

    Batches of a loader are what they are.
    """
    inputs = Inputs.of(inputs)
    if not inputs.sized:
        return BATCH
    count = min(2, len(inputs))
    _, held = next(stream(module, [inputs.example(count)], sites))
    size = sum(tensor.nbytes for tensor in held.values()) // count
    return max(1, min(BATCH, BATCH_BYTES // max(size, 1)))


def collect(module: nn.Module, inputs: Any, sites: Sequence[Site], batch_size: int | None = None) -> Held:
    """Activations `[samples, units]` of each site for the whole probe; use `stream` when they do not fit in memory."""
    parts: dict[Site, list[torch.Tensor]] = {site: [] for site in sites}
    for _, held in stream(module, inputs, sites, batch_size):
        for site, activations in held.items():
            parts[site].append(activations)
    return {site: torch.cat(chunks) for site, chunks in parts.items() if chunks}


def origins_of(module: nn.Module, site: Site, batch: Batch, rows: torch.Tensor, start: int) -> torch.Tensor | None:
    """`[rows, 2]`: input (counted from `start`) and position of every row of a batch; None where that is not known."""
    mask = batch.mask
    if mask is not None and len(rows) == int(mask.sum()):
        return mask.nonzero().cpu() + torch.tensor([start, 0])
    positions, rest = divmod(len(rows), batch.size)
    if rest:
        return None
    alone = collect(module, [batch.cut(1)], [site])[site]
    if len(alone) != positions or not torch.allclose(alone, rows[:positions], rtol=1e-3, atol=1e-4):
        return None
    samples = torch.arange(start, start + batch.size).repeat_interleave(positions)
    return torch.stack([samples, torch.arange(positions).repeat(batch.size)], 1)
