"""What a network loses when the activations at a site are replaced by their reconstruction."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn

from featalign.data.batch import Batch, unwrap
from featalign.data.inputs import BATCH, Inputs
from featalign.data.task import Scores, Task, task_of
from featalign.data.tasks import Classification, NextToken
from featalign.errors import ProbeError, SpaceMismatch
from featalign.spaces.capture import CHANNELS, evaluating, require_module, rows_at, stream
from featalign.spaces.graph import Site
from featalign.spaces.naming import resolve_site

Edit = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Splice:
    """What is left of a network's function when a site is replaced by its reconstruction.

    Attributes:
        loss, loss_spliced, loss_ablated: the task's mean loss of the network, with the reconstruction, with the mean.
        recovered: `(loss_ablated - loss_spliced) / (loss_ablated - loss)`; 1 lossless, 0 no better than the mean; NaN
            where the mean costs nothing.
        scores, scores_spliced, scores_ablated: the task's metrics, `{name: value}`, likewise.
        kl: mean KL divergence from the network's class distribution to the spliced one, NaN for tasks without classes.
    """

    loss: float
    loss_spliced: float
    loss_ablated: float
    recovered: float
    scores: Mapping[str, float]
    scores_spliced: Mapping[str, float]
    scores_ablated: Mapping[str, float]
    kl: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON holds them."""
        return asdict(self)


def splice(
    model: nn.Module,
    site: Site | str,
    reconstruct: Edit,
    inputs: Any,
    targets: Any = None,
    task: Task | str | None = None,
    batch_size: int = BATCH,
) -> Splice:
    """Run `model` as it is, with the activations at `site` replaced by `reconstruct` of them, and by their mean.

    Args:
        site: input or output of a submodule, a hook name or a path (`spaces.resolve_site`). Of outputs in tuples,
            mappings and output objects the first tensor is replaced.
        reconstruct: rows `[samples * positions, units]` to rows.
        inputs, targets: see `data.Inputs`; targets may come with the inputs.
        task: whose loss and metrics are measured; None takes the one that outputs and targets speak for.

    Raises `SpaceMismatch` for an unknown submodule, one that does not run, and rows of another shape; `ProbeError`
    without inputs; `TaskError` where targets do not fit.
    """
    site = resolve_site(model, site)
    source = _source(inputs, targets).batched(batch_size)
    first = source.example()
    with evaluating(model):
        task = task_of(task, unwrap(first.run(model)), first)
    total, count = torch.zeros(()), 0
    for _, held in stream(model, source, [site]):
        total = total + held[site].double().sum(0)
        count += len(held[site])
    if not count:
        raise ProbeError(f"attention_mask leaves no token at '{site}': nothing can be replaced; check the masks")
    mean = total / count
    runs: dict[str, Edit | None] = {
        "": None,
        "spliced": reconstruct,
        "ablated": lambda rows: mean.to(rows).expand_as(rows),
    }
    tallies = {name: _Tally(task) for name in runs}
    divergence = tokens = 0.0
    with evaluating(model):
        for batch in source:
            outputs = {name: _run(model, site, edit, batch) for name, edit in runs.items()}
            for name, tally in tallies.items():
                tally.update(outputs[name], batch)
            if isinstance(task, (Classification, NextToken)):
                each = _divergence(task, outputs[""], outputs["spliced"], batch)
                divergence, tokens = divergence + float(each.sum()), tokens + each.numel()
    whole, spliced, ablated = (tally.loss / max(tally.elements, 1) for tally in tallies.values())
    gap = ablated - whole
    scores = [tally.scores.result() for tally in tallies.values()]
    recovered = (ablated - spliced) / gap if gap > 1e-6 * max(1.0, abs(whole)) else float("nan")
    kl = divergence / tokens if tokens else float("nan")
    return Splice(whole, spliced, ablated, recovered, scores[0], scores[1], scores[2], kl)


def _source(inputs: Any, targets: Any) -> Inputs:
    if targets is None:
        return Inputs.of(inputs, labelled=True)
    if hasattr(inputs, "__len__") and hasattr(targets, "__len__") and len(inputs) not in (0, len(targets)):
        raise ProbeError(f"{len(inputs)} inputs and {len(targets)} targets; pass one target per input")
    return inputs.with_targets(targets) if isinstance(inputs, Inputs) else Inputs.of(inputs, targets)


class _Tally:
    """Loss and metrics over batches."""

    def __init__(self, task: Task):
        self.task, self.scores, self.loss, self.elements = task, Scores(task), 0.0, 0

    def update(self, outputs: torch.Tensor, batch: Batch) -> None:
        targets = self.task.targets(batch)
        targets = targets.to(outputs.device) if isinstance(targets, torch.Tensor) else targets
        self.scores.update(outputs, batch)
        losses = self.task.loss(outputs, targets).double()
        self.loss, self.elements = self.loss + float(losses.sum()), self.elements + losses.numel()


def _divergence(
    task: Classification | NextToken, whole: torch.Tensor, other: torch.Tensor, batch: Batch
) -> torch.Tensor:
    """KL divergence of each element's class distribution, of those whose target counts."""
    reader = task if isinstance(task, Classification) else Classification(ignore=task.ignore)
    before, after = (reader.mixture([outputs], [1.0]).clamp_min(1e-300) for outputs in (whole, other))
    found = (before * (before.log() - after.log())).sum(-1)
    targets = task.targets(batch)
    if isinstance(targets, torch.Tensor) and targets.shape == found.shape:
        found = found[targets.to(found.device) != reader.ignore]
    return found


def _run(model: nn.Module, site: Site, edit: Edit | None, batch: Batch) -> torch.Tensor:
    if edit is None:
        return unwrap(batch.run(model))
    with edited(model, site, edit) as calls:
        outputs = unwrap(batch.run(model))
    if not calls:
        raise SpaceMismatch(f"nothing is seen at '{site}': it does not run by itself, or passes no plain tensor there")
    return outputs


@contextmanager
def edited(model: nn.Module, site: Site, edit: Edit) -> Iterator[list[int]]:
    """`edit` of the rows at a site in every call; the list tells how many there were."""
    part = require_module(model, site.module)
    channels = isinstance(part, CHANNELS)
    calls: list[int] = []

    def change(tensor: torch.Tensor) -> torch.Tensor:
        calls.append(len(tensor))
        return _put(tensor, site, channels, edit)

    def before(_module: nn.Module, args: Any, kwargs: Any) -> Any:
        return first_replaced((args, kwargs), change)

    def after(_module: nn.Module, _args: Any, outputs: Any) -> Any:
        return first_replaced(outputs, change)

    if site.side == "in":
        handle = part.register_forward_pre_hook(before, with_kwargs=True)
    else:
        handle = part.register_forward_hook(after)
    try:
        yield calls
    finally:
        handle.remove()


def _put(tensor: torch.Tensor, site: Site, channels: bool, edit: Edit) -> torch.Tensor:
    """The tensor with the rows of a site replaced by `edit` of them."""
    rows = rows_at(tensor, site, channels)
    new = edit(rows if rows.dtype in (torch.float32, torch.float64) else rows.float())
    if new.shape != rows.shape:
        raise SpaceMismatch(f"reconstruction {tuple(new.shape)} of rows {tuple(rows.shape)} at '{site}'")
    new = new.to(tensor)
    if site.heads:
        return new.reshape(tensor.shape)
    dim = site.dim if site.dim is not None else 1 if channels and tensor.dim() > 2 else -1
    moved = tensor.movedim(dim, -1)
    if site.dim is None or site.size is None:
        return new.reshape(moved.shape).movedim(-1, dim)
    moved = moved.clone()
    length = site.tile * site.size * site.repeat
    back = new.reshape(*moved.shape[:-1], site.tile, site.repeat, site.size).transpose(-1, -2)
    moved[..., site.offset : site.offset + length] = back.reshape(*moved.shape[:-1], length)
    return moved.movedim(-1, dim)


def first_replaced(value: Any, change: Edit) -> Any:
    """The same structure of tuples, lists, mappings and output objects with `change` of its first tensor."""
    done = False

    def walk(item: Any) -> Any:
        nonlocal done
        if done:
            return item
        if isinstance(item, torch.Tensor):
            done = True
            return change(item)
        if isinstance(item, Mapping):
            found = {key: walk(part) for key, part in item.items()}
            if type(item) is dict:
                return found
            return replace(item, **found) if hasattr(item, "__dataclass_fields__") else type(item)(found)  # type: ignore
        if isinstance(item, tuple) and hasattr(item, "_fields"):
            return type(item)(*map(walk, item))
        if isinstance(item, (tuple, list)):
            return type(item)(map(walk, item))
        return item

    return walk(value)
