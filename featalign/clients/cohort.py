"""`Cohort`: the clients of one question, validated once. Every verb starts from one.

>>> cohort = Cohort.of([model_a, model_b], probe=x, evaluate=(x_test, y_test))
>>> cohort.task, cohort.graphs[0].hidden
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import nn

from featalign import options as typed
from featalign.clients.evaluation import temper_of
from featalign.clients.training import check_finite
from featalign.data.batch import Batch, unwrap
from featalign.data.inputs import Inputs
from featalign.data.partition import client_names
from featalign.data.task import Task, task_of
from featalign.errors import ArchitectureMismatch, BadOption, FeatalignError, ProbeError, TraceError
from featalign.spaces import Canonical, canonical, trace, weakest
from featalign.spaces.capture import evaluating
from featalign.spaces.depth import equally_deep
from featalign.spaces.graph import SpaceGraph


@dataclass(frozen=True)
class Cohort:
    """Named clients of one architecture with everything that may be known of them.

    Attributes:
        names, modules: the clients; norms are folded where that is possible (`spaces.canonical`), functions unchanged.
        graphs: spaces of each, with the same names and symmetries.
        task: what the networks are for.
        probe: unlabelled inputs that all clients may see.
        refit_inputs: the probe, or its extension by synthetic inputs.
        evaluation: inputs with targets; never used to fit anything. None where nothing is to be scored.
        own: what each client saw, for its dictionaries; the probe where that is not known.
        class_counts: `[clients, classes]` label counts, only if the server may know them.
        keys: fingerprints of clients whose dictionaries may be cached; empty otherwise.
        seed: of whatever is drawn.
        base: the network that all clients were trained from, where it is known.
        restore: gives a fused network the layout that the clients came in; `restores` by client.
        notes: what was found on the way and belongs on the page.
    """

    names: tuple[str, ...]
    modules: tuple[nn.Module, ...]
    graphs: tuple[SpaceGraph, ...]
    task: Task
    probe: Inputs
    refit_inputs: Inputs
    evaluation: Inputs | None = None
    own: tuple[Inputs, ...] = ()
    class_counts: torch.Tensor | None = None
    keys: tuple[str, ...] = ()
    seed: int = 0
    base: nn.Module | None = None
    restore: Callable[[nn.Module], nn.Module] = lambda module: module
    notes: tuple[str, ...] = ()
    restores: tuple[Callable[[nn.Module], nn.Module], ...] = ()

    @classmethod
    def of(
        cls,
        modules: Sequence[nn.Module],
        probe: Any,
        evaluate: Any = None,
        task: Task | str | None = None,
        *,
        data: Sequence[Any] | None = None,
        names: Sequence[str] | None = None,
        class_counts: Any = None,
        class_names: Sequence[str] = (),
        tokenizer: Any = None,
        refit_inputs: Any = None,
        keys: Sequence[str] = (),
        reference: int = -1,
        seed: int = 0,
        base: nn.Module | None = None,
        device: torch.device | str | None = None,
        read_only: bool = False,
    ) -> Cohort:
        """Validate and trace clients.

        Args:
            modules: trained networks of one architecture; widths may differ.
            probe: whatever `Inputs` reads, without labels.
            evaluate: `(inputs, targets)` or a loader of such pairs; for language models the inputs alone.
            task: a `Task`, a registered name, or None to read it off outputs and targets.
            data: per client, what it saw.
            class_counts: `[clients, classes]`.
            refit_inputs: an extension of the probe.
            reference: index of the client whose layout `restore` gives.
            base: the network that all clients were trained from.
            read_only: weights stay as they are: no norms are folded, and networks whose spaces cannot be traced (or
                whose parameters go by other names, such as a TransformerBridge) have none. Their sites are read by
                name (`spaces.resolve_site`).

        Raises a `FeatalignError` of one line for no clients, clients of several architectures, parameters that are not
        finite, a probe that a client rejects, and targets that do not fit the task.
        """
        names = _checked_names(names, modules, read_only)
        seed = typed.convert(seed, int, "seed")
        counts = None if class_counts is None else counts_of(class_counts, len(modules))
        bases = [] if base is None else [_checked_base(base, names[0], modules[0])]
        if device is not None:
            modules, bases = ([placed(module, device) for module in part] for part in (modules, bases))
        inputs = Inputs.of(probe, tokenizer=tokenizer)
        scored = None if evaluate is None else Inputs.of(evaluate, tokenizer=tokenizer, labelled=True)
        example = inputs.example()
        given, modules = modules, equally_deep(modules, example)
        outputs = _tried(names, modules, inputs, example)
        found = _task(task, scored, inputs, names[0], modules[0], outputs, class_names)
        parts = [*modules, *bases]
        folded = [Canonical(module) for module in parts] if read_only else _folded(parts, example)
        bases, folded = [each.module for each in folded[len(modules) :]], folded[: len(modules)]
        graphs, untraced = _traced(folded, example, read_only)
        require_one_graph(names, graphs)
        own = tuple(Inputs.of(each, tokenizer=tokenizer) for each in data) if data is not None else ()
        if own and len(own) != len(modules):
            raise BadOption(f"data= holds {len(own)} data sets for {len(modules)} clients; give one each")
        return cls(
            names=names,
            modules=tuple(each.module for each in folded),
            graphs=graphs,
            task=found,
            probe=inputs,
            refit_inputs=inputs if refit_inputs is None else Inputs.of(refit_inputs, tokenizer=tokenizer),
            evaluation=scored,
            own=own or (inputs,) * len(modules),
            class_counts=counts,
            keys=tuple(keys),
            seed=seed,
            base=bases[0] if bases else None,
            restore=folded[reference].restore,
            notes=(*untraced, *_changes(names, folded, given, modules)),
            restores=tuple(each.restore for each in folded),
        )

    def __len__(self) -> int:
        return len(self.modules)

    @property
    def equal_widths(self) -> bool:
        """Whether every hidden space has one size in all clients."""
        return all(space.size == graph[space.name].size for graph in self.graphs for space in self.graphs[-1].hidden)

    @cached_property
    def example(self) -> Batch:
        """Two samples of the probe."""
        return self.probe.example()

    def temper(self, mixing: Sequence[float]) -> float:
        """How far the clients' confidence may be compared at mixing weights, by the probe; see `temper_of`."""
        return temper_of(self.modules, self.probe, self.task, mixing)

    def based_on(self, client: int) -> Cohort:
        """The same clients, with fused networks in the layout of another one."""
        return replace(self, restore=self.restores[client]) if self.restores else self

    def changed(self, **fields: Any) -> Cohort:
        """A copy with some fields replaced."""
        return replace(self, **fields)


def _checked_names(names: Sequence[str] | None, modules: Any, read_only: bool) -> tuple[str, ...]:
    """A name for every client; raises `BadOption` for names that are too few or not distinct, and for clients that
    are no modules, not finite, or (unless nothing is written) call their parameters by other names."""
    require_modules(modules)
    found = client_names(len(modules)) if names is None else tuple(map(str, names))
    if len(found) != len(modules):
        raise BadOption(f"{len(found)} names for {len(modules)} clients; give one each")
    if doubled := [name for name in found if found.count(name) > 1]:
        raise BadOption(f"two clients are called '{doubled[0]}'; give each its own name")
    for name, module in zip(found, modules):
        check_finite(module, name)
        if not read_only:
            require_own_names(name, module)
    return found


def _tried(names: Sequence[str], modules: Sequence[nn.Module], inputs: Inputs, example: Batch) -> torch.Tensor:
    """The first client's outputs on an example that all clients take; raises what `try_out` raises."""
    require_one_architecture(names, modules)
    outputs = [try_out(module, example, name) for name, module in zip(names, modules)]
    if (extreme := extreme_tokens(inputs)) is not None:
        for name, module in zip(names, modules):
            try_out(module, extreme, name)
    return outputs[0]


def _changes(
    names: Sequence[str], folded: Sequence[Canonical], given: Sequence[nn.Module], modules: Sequence[nn.Module]
) -> tuple[str, ...]:
    """What was done to the clients before they were compared."""
    notes = tuple(dict.fromkeys(note for each in folded for note in each.notes))
    return notes + tuple(
        f"client {name} was given layers that change nothing, to be as deep as the deepest"
        for name, before, after in zip(names, given, modules)
        if len(before.state_dict()) != len(after.state_dict())
    )


def _checked_base(base: Any, name: str, client: nn.Module) -> nn.Module:
    """The common start; raises `BadOption` or `ArchitectureMismatch` for one that no client can come from."""
    if not isinstance(base, nn.Module):
        raise BadOption(f"base is a {type(base).__name__}; pass the module that all clients were trained from")
    check_finite(base, "base")
    require_one_architecture((name, "base"), (client, base))
    for key, tensor in base.state_dict().items():
        if tensor.shape != client.state_dict()[key].shape:
            raise ArchitectureMismatch(
                f"base and client {name} differ at '{key}': {list(tensor.shape)} and "
                f"{list(client.state_dict()[key].shape)}; pass the network that the clients were trained from"
            )
    return base


def require_modules(modules: Any) -> None:
    """Raise `BadOption` for anything but a list of at least one module."""
    if isinstance(modules, nn.Module) or not isinstance(modules, Sequence):
        raise BadOption(f"the clients are a {type(modules).__name__}; pass a list of trained modules")
    if len(modules) == 0:
        raise BadOption("zero clients; pass a list of at least one trained module")
    for module in modules:
        if not isinstance(module, nn.Module):
            raise BadOption(f"a client is a {type(module).__name__}; pass trained modules (torch.nn.Module)")


def placed(module: nn.Module, device: torch.device | str) -> nn.Module:
    """The module on a device; raises `BadOption` for one that is not there."""
    try:
        return module.to(device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise BadOption(f"device '{device}' cannot be used: {str(error).strip().splitlines()[0]}") from error


def counts_of(class_counts: Any, clients: int) -> torch.Tensor:
    """Label counts `[clients, classes]`, float64; raises `BadOption` for anything that is no table of counts."""
    try:
        counts = torch.as_tensor(class_counts, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise BadOption(f"class_counts is no table of numbers ({error}); give [clients, classes]") from error
    if counts.dim() != 2 or len(counts) != clients:
        raise BadOption(
            f"class_counts {list(counts.shape)}; give a row of label counts per client, [{clients}, classes]"
        )
    if not torch.isfinite(counts).all() or bool((counts < 0).any()) or not bool(counts.sum() > 0):
        raise BadOption("class_counts must be finite, non-negative and not all zero")
    return counts


def _folded(modules: Sequence[nn.Module], example: Batch) -> list[Canonical]:
    """Every client in canonical form, or none where the same norms cannot be folded in all."""
    folded = [canonical(module, example.on(module).example) for module in modules]
    if len({each.folded for each in folded}) == 1:
        return folded
    notes = tuple(dict.fromkeys(note for each in folded for note in each.notes))
    return [Canonical(module, notes=("norms are not folded: not all clients allow it", *notes)) for module in modules]


def _traced(
    folded: Sequence[Canonical], example: Batch, read_only: bool
) -> tuple[tuple[SpaceGraph, ...], tuple[str, ...]]:
    """Graphs of the clients; empty ones, and why, where they are only read and cannot be traced."""
    try:
        if read_only:
            require_own_names("0", folded[0].module)
        return tuple(weakest([trace(each.module, example.on(each.module).example) for each in folded])), ()
    except TraceError as error:
        if not read_only:
            raise
        return tuple(SpaceGraph(()) for _ in folded), (f"spaces were not traced: {error}",)


def _row(index: int, tensor: torch.Tensor) -> torch.Tensor:
    return tensor[index : index + 1]


def extreme_tokens(inputs: Inputs) -> Batch | None:
    """The samples with the smallest and the largest token id; None where the inputs are no tokens."""
    found: dict[str, tuple[int, Batch]] = {}
    for batch in inputs if inputs.example().tokens is not None else ():
        tokens = batch.tokens
        assert tokens is not None
        for side, value in (("low", -int(tokens.min())), ("high", int(tokens.max()))):
            if side not in found or value > found[side][0]:
                at = int(tokens.amax(1).argmax() if side == "high" else tokens.amin(1).argmin())
                found[side] = (value, batch.map(partial(_row, at)))
    if not found:
        return None
    low, high = found["low"][1], found["high"][1]
    return low if found["low"][0] > 0 else high


def require_own_names(name: str, module: nn.Module) -> None:
    """Raise `TraceError` for a wrapper whose `state_dict` gives all of its parameters other names."""
    state, found = set(module.state_dict()), [key for key, _ in module.named_parameters()]
    if found and not state & set(found):
        raise TraceError(
            f"client {name} is a {type(module).__name__}, whose state_dict renames its parameters ('{found[0]}' is not "
            "in it), so that fused weights could not be put back; pass the network that it wraps, such as "
            "transformers' AutoModelForCausalLM.from_pretrained(folder)"
        )


def require_one_architecture(names: Sequence[str], modules: Sequence[nn.Module]) -> None:
    """Raise `ArchitectureMismatch` naming the first tensor that two clients do not both have."""
    shapes = [{name: tensor.dim() for name, tensor in module.state_dict().items()} for module in modules]
    for name, shape in zip(names[1:], shapes[1:]):
        if shape != shapes[0]:
            differing = sorted(set(shape.items()) ^ set(shapes[0].items()))[0][0]
            raise ArchitectureMismatch(
                f"clients {names[0]} and {name} differ at '{differing}': they need the same layers "
                f"({len(shapes[0])} and {len(shape)} tensors); fuse clients of one architecture and depth"
            )


def require_one_graph(names: Sequence[str], graphs: Sequence[SpaceGraph]) -> None:
    """Raise `ArchitectureMismatch` when clients have other hidden spaces than the first."""
    spaces = [[space.name for space in graph.hidden] for graph in graphs]
    for name, other in zip(names[1:], spaces[1:]):
        if other != spaces[0]:
            odd = sorted(set(other) ^ set(spaces[0])) or ["their order"]
            raise ArchitectureMismatch(
                f"clients {names[0]} and {name} differ in hidden spaces at '{odd[0]}'; fuse clients of one architecture"
            )


def try_out(module: nn.Module, example: Batch, name: str, what: str = "probe") -> torch.Tensor:
    """Outputs of a few samples; raises `ProbeError` when the client rejects them or returns no tensor."""
    for tensor in example.tensors:
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ProbeError(f"the {what} {list(tensor.shape)} holds NaN or infinity; drop those samples")
    try:
        with evaluating(module):
            return unwrap(example.run(module))
    except FeatalignError:
        raise
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError) as error:
        shapes = ", ".join(f"{str(t.dtype).removeprefix('torch.')} {list(t.shape)}" for t in example.tensors)
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        remedy = "pass inputs of the shape and type that the clients take"
        if isinstance(error, IndexError) and (tokens := example.tokens) is not None:
            remedy = f"token ids go from {int(tokens.min())} to {int(tokens.max())}: use the clients' own tokenizer"
        raise ProbeError(f"client {name} rejects the {what} {shapes}: {reason}; {remedy}") from error


def _task(
    task: Task | str | None,
    scored: Inputs | None,
    probe: Inputs,
    name: str,
    module: nn.Module,
    outputs: torch.Tensor,
    class_names: Sequence[str],
) -> Task:
    """The task, checked on the first evaluation batch."""
    if scored is None:
        batch = probe.example()
        if task is None and batch.tokens is None:
            return task_of("regression", outputs, batch)
        return task_of(task, outputs, batch, class_names)
    batch = scored.example(min(len(scored), 64) if scored.sized else 64)
    return task_of(task, try_out(module, batch, name, "evaluation data"), batch, class_names)
