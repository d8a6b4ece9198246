"""Trace a module: run it once on an example and unite the tensor axes that its operations tie together.

The recording sits below autograd, at the ATen operations that really run, so that any `nn.Module` is read as it is:
no symbolic proxies, no rewriting, the branch taken by the example.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import featalign.spaces.tracing.layers
import featalign.spaces.tracing.products  # noqa: F401 - handlers file themselves
from featalign.errors import TraceError
from featalign.spaces.graph import Symmetry
from featalign.spaces.structures import tensors_in
from featalign.spaces.tracing.axes import Node, unite
from featalign.spaces.tracing.elementwise import elementwise, homogeneous, leaky, power, same, with_buffer
from featalign.spaces.tracing.expressions import Made, Version
from featalign.spaces.tracing.registry import HANDLERS, Call, Dim, Dims, Origin, Value, pinned_dims
from featalign.spaces.tracing.shapes import permute, reshape, transpose

_RESHAPES_IN_PLACE = {"unsqueeze", "squeeze", "t", "transpose", "swapaxes"}
_CONSTANTS = {"zeros_like", "ones_like", "full_like", "empty_like", "new_zeros", "new_ones", "new_full", "new_empty"}
_RANDOM = {
    *("bernoulli", "rand", "randn", "rand_like", "randn_like", "randint", "randint_like", "randperm", "normal"),
    *("uniform", "multinomial", "exponential", "poisson", "native_dropout", "rrelu_with_noise", "random"),
}
_NONLINEAR = (elementwise, homogeneous, leaky, power, with_buffer)
_READS_DATA = {"_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "unique2", "equal"}


@dataclass(frozen=True)
class Sighting:
    """A tensor that passed a module's boundary."""

    module: str
    side: str
    version: Version
    dims: Dims
    tensor: torch.Tensor
    call: int


class Tracer(TorchDispatchMode):
    """Records one forward pass. `partial` accepts reads of data (control flow) with a warning."""

    def __init__(self, module: nn.Module, partial: bool):
        super().__init__()
        self.partial = partial
        self.values: dict[int, Value] = {}
        self.kept: list[torch.Tensor] = []  # ids stay unique while the tensors live
        self.storages: dict[int, list[Value]] = {}
        self.roles: dict[Origin, set[str]] = {}
        self.nonlinear: dict[Version, tuple[Version, int]] = {}  # input of a nonlinearity -> result, and when
        self.made: dict[Version, Made] = {}
        self.random: dict[str, str] = {}  # module -> operation that drew random numbers in it
        self.versions: dict[int, int] = {}
        self.views: dict[Version, Version] = {}
        self.entries: dict[Version, int] = {}
        self.sightings: list[Sighting] = []
        self.calls: dict[str, int] = {}
        self.stack: list[str] = []
        self.warnings: dict[str, None] = {}
        self.clock = 0
        self.parameters: dict[str, Value] = {}
        self.names: dict[int, str] = {}
        self.used: dict[str, None] = {}  # parameters in order of first use
        state = set(module.state_dict(keep_vars=True))
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if name in state and tensor.is_floating_point():
                dims = tuple(
                    Dim(size, Node(size) if size > 1 else None, frozenset({(name, k)}))
                    for k, size in enumerate(tensor.shape)
                )
                self.names[id(tensor)] = name
                self.parameters[name] = self.record(tensor, dims, weight=True, tainted=False)

    # what handlers ask for

    def value(self, tensor: torch.Tensor) -> Value:
        """What is known of a tensor; an unknown one is a constant, pinned wherever it varies."""
        known = self.values.get(id(tensor))
        if known is not None:
            return known
        dims = []
        for k, size in enumerate(tensor.shape):
            constant = size < 2 or tensor.stride(k) == 0 or bool((tensor == tensor.narrow(k, 0, 1)).all())
            dims.append(Dim(size, None if constant else Node(size, Symmetry.PINNED)))
        return Value(tensor, tuple(dims), weight=False, tainted=False)

    def role(self, dims: Sequence[Dim], role: str) -> None:
        """Note that parameter dimensions read a space or scale its units (they write it otherwise)."""
        for dim in dims:
            for origin in dim.origins:
                self.roles.setdefault(origin, set()).add(role)

    def warn(self, message: str) -> None:
        """Keep a warning once."""
        self.warnings.setdefault(message)

    @property
    def where(self) -> str:
        """The module that runs, for messages."""
        return f"'{self.stack[-1]}'" if self.stack and self.stack[-1] else "the module itself"

    # recording

    def record(self, tensor: torch.Tensor, dims: Dims, weight: bool = False, tainted: bool = True) -> Value:
        """Remember a tensor's dimensions."""
        value = Value(tensor, dims, weight, tainted)
        self.values[id(tensor)] = value
        self.kept.append(tensor)
        self.storages.setdefault(tensor.untyped_storage()._cdata, []).append(value)
        return value

    def version(self, tensor: torch.Tensor) -> Version:
        """Identifies the contents of a tensor; reshaped views share it."""
        own = (id(tensor), self.versions.get(id(tensor), 0))
        return self.views.get(own, own)

    def seen_leaves(self) -> set[int]:
        """Ids of the leaves that occur in activations."""
        values = [value for shared in self.storages.values() for value in shared if not value.weight]
        nodes = {id(dim.node): dim.node for value in values for dim in value.dims if dim.node is not None}
        return {id(leaf) for node in nodes.values() for leaf in node.leaves}

    def pin_input(self, inputs: Sequence[torch.Tensor]) -> None:
        """Inputs keep their basis."""
        for tensor in inputs:
            dims = tuple(Dim(size, Node(size, Symmetry.PINNED, "input") if size > 1 else None) for size in tensor.shape)
            self.record(tensor, dims)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = tensors_in([args, list(kwargs.values())])
        name = func._schema.name.split("::")[-1]
        known = [self.values[id(tensor)] for tensor in tensors if id(tensor) in self.values]
        for tensor in tensors:
            if id(tensor) in self.names:
                self.used.setdefault(self.names[id(tensor)])
        if name.rstrip("_") in _READS_DATA or name in _READS_DATA:
            self.read_data(name, known)
        in_place = name.endswith("_") and not name.startswith("__")
        if name.rstrip("_") in _RANDOM:
            self.random.setdefault(self.where, name.rstrip("_"))
        before = self.values.get(id(args[0])) if in_place and args else None
        out = func(*args, **kwargs)
        if known and name not in _CONSTANTS:
            self.clock += 1
            pointwise = torch.Tag.pointwise in func.tags
            plain = name.rstrip("_") if in_place else name
            call = Call(plain, tuple(args), kwargs, out, self, pointwise, tensors, f"{plain}.{func._overloadname}")
            self.apply(call, known, before, in_place)
        return out

    def apply(self, call: Call, known: list[Value], before: Value | None, in_place: bool) -> None:
        """Run the handler of one operation and record its results."""
        outs = [out for out in (call.out if isinstance(call.out, (tuple, list)) else [call.out])]
        if call.name in ("copy", "fill", "zero"):
            self.write(call, before)
            return
        handler = HANDLERS.get(call.name) or (elementwise if call.pointwise else None)
        results = handler(call) if handler else None
        if results is None:
            results = self.give_up(call, outs)
        rows = results if isinstance(results, list) else [results]
        if isinstance(outs[0], torch.Tensor):
            self.follow(call, handler in _NONLINEAR or self.is_square(call), in_place)
        if handler in (reshape, permute, transpose, same) and call.name != "neg" and isinstance(outs[0], torch.Tensor):
            contents = self.version(call.args[0])
            if contents != (id(outs[0]), self.versions.get(id(outs[0]), 0)):
                self.views[id(outs[0]), self.versions.get(id(outs[0]), 0)] = contents
        tainted = any(value.tainted for value in known)
        data = any(not value.weight for value in known)
        for out, row in zip(outs, rows, strict=False):
            if not isinstance(out, torch.Tensor):
                continue
            if in_place and before is not None and call.name not in _RESHAPES_IN_PLACE:
                self.reconcile(before, row)
            weight = not data and all(dim.origins or dim.node is None for dim in row)
            self.record(out, row, weight, tainted).square = self.is_square(call)

    def follow(self, call: Call, nonlinear: bool, in_place: bool) -> None:
        """Note how a tensor came to be, and that an elementwise function was applied."""
        seen = {id(tensor): self.version(tensor) for tensor in call.tensors}
        out = call.out[0] if isinstance(call.out, (tuple, list)) else call.out
        if in_place and call.name not in _RESHAPES_IN_PLACE:
            self.versions[id(out)] = self.versions.get(id(out), 0) + 1
        result = self.version(out)
        if nonlinear:
            self.nonlinear.update({version: (result, self.clock) for version in seen.values()})
        if (nonlinear or call.pointwise) and call.name not in _RANDOM:
            constants = frozenset(key for key in seen if key not in self.values or not self.values[key].tainted)
            self.made[result] = Made(call.operation, call.args, call.kwargs, seen, constants)

    @staticmethod
    def is_square(call: Call) -> bool:
        """Whether the result is an elementwise square whose constraint is deferred."""
        if call.name == "pow":
            return not isinstance(call.args[1], torch.Tensor) and call.args[1] == 2
        return call.name == "mul" and call.args[0] is call.args[1]

    def give_up(self, call: Call, outs: Sequence[Any]) -> list[Dims]:
        """Pin everything an unknown operation touches, with a warning if that costs any freedom."""
        loose = [dim for t in call.tensors for dim in call.dims(t) if dim.node is not None and not dim.node.pinned]
        for dim in loose:
            dim.constrain(Symmetry.PINNED)
        if loose:
            self.warn(
                f"operation '{call.name}' in {self.where} is not understood: the axes it touches keep their basis"
            )
        return [pinned_dims(out) if isinstance(out, torch.Tensor) else () for out in outs]

    def reconcile(self, before: Value, dims: Dims) -> None:
        """An in-place result shares the old tensor's memory, and with it the basis."""
        for old, new in zip(before.dims, dims, strict=False):
            if old.node is not None and new.node is not None:
                unite(old.node, new.node)
            elif old.node is not None or new.node is not None:
                new.constrain(Symmetry.PINNED)
                self.poison(before.tensor)

    def write(self, call: Call, before: Value | None) -> None:
        """`copy_`, `fill_`, `zero_` into memory that other tensors may see."""
        target = call.args[0]
        if before is None or call.name != "copy":
            for tensor in call.tensors[1:]:
                for dim in call.dims(tensor):
                    dim.constrain(Symmetry.PINNED)
            if before is None:
                self.record(target, pinned_dims(target))
            self.poison(target)
            return
        source = call.dims(call.args[1])
        padded = (Dim(1),) * (len(before.dims) - len(source)) + source
        self.reconcile(before, tuple(Dim(dim.size, dim.node) for dim in padded))

    def poison(self, tensor: torch.Tensor) -> None:
        """Pin every tensor on the same memory: an in-place write that cannot be followed."""
        for value in self.storages.get(tensor.untyped_storage()._cdata, []):
            fresh = pinned_dims(value.tensor)
            for dim in value.dims:
                if dim.node is not None and not dim.node.pinned:
                    self.warn(f"an in-place write in {self.where} is not followed: what it touches keeps its basis")
                dim.constrain(Symmetry.PINNED)
            value.dims = tuple(d if d.node is not None else p for d, p in zip(value.dims, fresh, strict=True))

    def read_data(self, name: str, known: Sequence[Value]) -> None:
        """The program looked at numbers that depend on the input: what it did next may be another branch elsewhere."""
        if not any(value.tainted for value in known):
            return
        message = f"control flow in {self.where} depends on the data ('{name}')"
        if not self.partial:
            raise TraceError(f"{message}; pass partial=True to trace the branch the example takes, or pass a graph")
        self.warn(f"{message}: only the branch taken by the example was traced")

    # module boundaries

    def enter(self, name: str) -> Callable[..., None]:
        """Forward pre-hook of a named module."""

        def hook(_module: nn.Module, args: tuple[Any, ...]) -> None:
            self.stack.append(name)
            self.calls[name] = self.calls.get(name, 0) + 1
            self.sight(name, "in", args)

        return hook

    def leave(self, name: str) -> Callable[..., None]:
        """Forward hook of a named module."""

        def hook(_module: nn.Module, _args: Any, out: Any) -> None:
            self.sight(name, "out", out)
            self.stack.pop()

        return hook

    def sight(self, name: str, side: str, structure: Any) -> None:
        """Note the first tensor at a boundary (that is what capture reads)."""
        for tensor in tensors_in(structure)[:1]:
            value = self.values.get(id(tensor))
            if value is not None:
                self.entries[self.version(tensor)] = tensor.numel()
                seen = Sighting(name, side, self.version(tensor), value.dims, tensor, self.calls[name])
                self.sightings.append(seen)
