"""Forward passes of all batches through one network, paused at chosen submodules in turn.

A refit solves a layer from the inputs that the layers *already solved* deliver to it. Running the network from its
start once per layer costs the square of its depth; here every batch runs once, stops at the layer, and goes on when its
weights are written. Where the paused batches would not fit in memory, the network is run again for each layer instead.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any

import torch
from torch import nn

from featalign.data.batch import Batch
from featalign.data.inputs import Inputs
from featalign.spaces.capture import evaluating

PAUSED_BYTES = 1_500_000_000  # activations of paused batches held at a time
PAUSED_BATCHES = 256


class _Reached(Exception):
    """Ends a forward pass at the submodule that was asked for."""


class _Pass(threading.Thread):
    """One batch on its way through the network; runs only between `go` and the next stop."""

    def __init__(self, module: nn.Module, batch: Batch):
        super().__init__(daemon=True)
        self.module, self.batch = module, batch
        self.turn, self.back = threading.Semaphore(0), threading.Semaphore(0)
        self.where: nn.Module | None = None
        self.value: torch.Tensor | None = None
        self.error: BaseException | None = None
        self.ended = self.stopping = False

    def run(self) -> None:
        self.turn.acquire()
        try:
            if not self.stopping:
                with torch.no_grad():
                    self.batch.run(self.module)
        except _Reached:
            pass
        except BaseException as error:
            self.error = error
        finally:
            self.ended, self.where, self.value = True, None, None
            self.back.release()

    def stop_at(self, part: nn.Module, value: torch.Tensor) -> None:
        """Called inside the pass: wait here until told to go on."""
        self.where, self.value = part, value
        self.back.release()
        self.turn.acquire()
        self.where, self.value = None, None
        if self.stopping:
            raise _Reached

    def go(self) -> None:
        """Called outside: run to the next stop or to the end."""
        if not self.ended:
            self.turn.release()
            self.back.acquire()
        if self.error is not None:
            raise self.error

    def end(self) -> None:
        """Called outside: give the pass up."""
        self.stopping = True
        if not self.ended:
            self.turn.release()
            self.back.acquire()


class Walk:
    """`at(part)` gives the inputs of a submodule for every batch; parts are asked for in the order in which they run.

    >>> with Walk(network, inputs, parts) as walk:
    ...     for part in parts:
    ...         for x in walk.at(part): ...
    """

    def __init__(self, module: nn.Module, inputs: Inputs, parts: Iterable[nn.Module]):
        self.module, self.inputs, self.parts = module, inputs, list(parts)
        self._passes: list[_Pass] = []
        self._handles: list[Any] = []
        self._training: Any = None

    def __enter__(self) -> Walk:
        self._training = evaluating(self.module)
        self._training.__enter__()
        if self._affordable():
            self._passes = [_Pass(self.module, batch) for batch in self.inputs]
            for each in self._passes:
                each.start()
            self._handles = [part.register_forward_pre_hook(_pause) for part in self.parts]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for each in self._passes:
            each.end()
        for handle in self._handles:
            handle.remove()
        self._training.__exit__(kind, error, trace)

    def at(self, part: nn.Module) -> Iterator[torch.Tensor]:
        """The first argument of `part` for every batch, in the inputs' order."""
        if not self._passes:
            yield from self._again(part)
            return
        for each in self._passes:
            while not each.ended and each.where is not part:
                each.go()
            if each.value is not None:
                yield each.value

    def _again(self, part: nn.Module) -> Iterator[torch.Tensor]:
        found: list[torch.Tensor] = []

        def note(_module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            found.append(args[0].detach())
            raise _Reached

        for batch in self.inputs:
            found.clear()
            with _hooked(part, note), torch.no_grad(), suppress(_Reached):
                batch.run(self.module)
            yield from found

    def _affordable(self) -> bool:
        """Whether all batches may wait inside the network at once."""
        example = self.inputs.example(2)
        largest = 0

        def measure(_module: nn.Module, args: tuple[Any, ...]) -> None:
            nonlocal largest
            largest = max(largest, sum(a.nbytes for a in args if isinstance(a, torch.Tensor)))

        handles = [part.register_forward_pre_hook(measure) for part in self.parts]
        try:
            with torch.no_grad():
                example.run(self.module)
        finally:
            for handle in handles:
                handle.remove()
        batches = -(-len(self.inputs) // self.inputs.batch_size)
        return 4 * largest / example.size * len(self.inputs) <= PAUSED_BYTES and batches <= PAUSED_BATCHES


def _pause(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
    thread = threading.current_thread()
    if isinstance(thread, _Pass):
        thread.stop_at(module, args[0].detach())


@contextmanager
def _hooked(part: nn.Module, hook: Any) -> Iterator[None]:
    handle = part.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def running_order(module: nn.Module, example: Batch, names: Iterable[str]) -> list[str]:
    """The named submodules that run exactly once on an example, in that order."""
    seen: list[str] = []
    handles = [
        module.get_submodule(name).register_forward_pre_hook(lambda _m, _a, n=name: seen.append(n)) for name in names
    ]
    try:
        with evaluating(module):
            example.run(module)
    finally:
        for handle in handles:
            handle.remove()
    return [name for name in seen if seen.count(name) == 1]
