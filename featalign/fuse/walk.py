"""Forward passes of all batches through one network, paused at chosen sites in turn.

A refit solves a layer from what the layers *already solved* deliver to it. Running the network from its start once per
layer costs the square of its depth; here every batch runs once, stops at the site, and goes on when weights are written
and the waiting tensor is corrected. Where the paused batches would not fit in memory, the network is run again for each
site instead.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any

import torch
from torch import nn

from featalign.data.batch import Batch
from featalign.data.inputs import Inputs
from featalign.spaces.capture import evaluating
from featalign.spaces.graph import Site
from featalign.spaces.structures import tensors_in

PAUSED_BYTES = 1_500_000_000  # activations of paused batches held at a time
PAUSED_BATCHES = 256
Seen = Callable[[Site, torch.Tensor], None]


class _Reached(Exception):
    """Ends a forward pass at the site that was asked for."""


class Stop:
    """A batch that waits at a site: `value` is the tensor there, `noted` what it passed at the sites to be noted.

    A change of `value` in place is what the rest of the network receives.
    """

    def __init__(self, batch: Batch):
        self.batch = batch
        self.noted: dict[Site, torch.Tensor] = {}
        self.value: Any = None


class _Pass(threading.Thread):
    """One batch on its way through the network; runs only between `go` and the next stop."""

    def __init__(self, walk: Walk, batch: Batch):
        super().__init__(daemon=True)
        self.walk, self.stop = walk, Stop(batch)
        self.turn, self.back = threading.Semaphore(0), threading.Semaphore(0)
        self.where: Site | None = None
        self.error: BaseException | None = None
        self.ended = self.stopping = False

    def run(self) -> None:
        self.turn.acquire()
        try:
            if not self.stopping:
                with torch.no_grad():
                    self.stop.batch.run(self.walk.module)
        except _Reached:
            pass
        except BaseException as error:
            self.error = error
        finally:
            self.ended, self.where, self.stop.value = True, None, None
            self.back.release()

    def see(self, site: Site, value: torch.Tensor) -> None:
        """Called inside the pass: note the value, or wait here until told to go on."""
        if site in self.walk.notes:
            self.stop.noted[site] = value.detach().clone()
        if site not in self.walk.stops:
            return
        self.where, self.stop.value = site, value.detach()
        self.back.release()
        self.turn.acquire()
        self.where, self.stop.value = None, None
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
    """`at(site)` gives every batch as it waits at a site; sites are asked for in the order in which they are passed.

    Args:
        stops: where batches wait; each is passed once.
        notes: sites whose tensors are to be remembered until a stop asks for them.

    >>> with Walk(network, inputs, stops) as walk:
    ...     for site in stops:
    ...         for stop in walk.at(site): ...
    """

    def __init__(self, module: nn.Module, inputs: Inputs, stops: Iterable[Site], notes: Iterable[Site] = ()):
        self.module, self.inputs = module, inputs
        self.stops, self.notes = frozenset(stops), frozenset(notes)
        self._passes: list[_Pass] = []
        self._handles: list[Any] = []
        self._training: Any = None

    def __enter__(self) -> Walk:
        self._training = evaluating(self.module)
        self._training.__enter__()
        if self._affordable():
            self._passes = [_Pass(self, batch) for batch in self.inputs]
            for each in self._passes:
                each.start()
            self._handles = watch(self.module, self.stops | self.notes, _in_pass)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for each in self._passes:
            each.end()
        for handle in self._handles:
            handle.remove()
        self._training.__exit__(kind, error, trace)

    @property
    def waiting(self) -> bool:
        """Whether batches wait inside the network, so that what they hold there can be corrected."""
        return bool(self._passes)

    def at(self, site: Site) -> Iterator[Stop]:
        """Every batch at a site, in the inputs' order."""
        if not self._passes:
            yield from self._again(site)
            return
        for each in self._passes:
            while not each.ended and each.where != site:
                each.go()
            if each.stop.value is not None:
                yield each.stop

    def forget(self, sites: Iterable[Site]) -> None:
        """Drop what was noted at sites."""
        for each in self._passes:
            for site in sites:
                each.stop.noted.pop(site, None)

    def _again(self, site: Site) -> Iterator[Stop]:
        for batch in self.inputs:
            stop = Stop(batch)

            def see(where: Site, value: torch.Tensor, stop: Stop = stop) -> None:
                if where in self.notes:
                    stop.noted[where] = value.detach().clone()
                if where == site:
                    stop.value = value.detach()
                    raise _Reached

            with _watched(self.module, self.notes | {site}, see), torch.no_grad(), suppress(_Reached):
                batch.run(self.module)
            if stop.value is not None:
                yield stop

    def _affordable(self) -> bool:
        """Whether all batches may wait inside the network at once."""
        example = self.inputs.example(2)
        largest = 0

        def measure(_site: Site, value: torch.Tensor) -> None:
            nonlocal largest
            largest = max(largest, value.nbytes)

        with _watched(self.module, self.stops | self.notes, measure), torch.no_grad():
            example.run(self.module)
        batches = -(-len(self.inputs) // self.inputs.batch_size)
        return 4 * largest / example.size * len(self.inputs) <= PAUSED_BYTES and batches <= PAUSED_BATCHES


def _in_pass(site: Site, value: torch.Tensor) -> None:
    thread = threading.current_thread()
    if isinstance(thread, _Pass):
        thread.see(site, value)


def watch(module: nn.Module, sites: Iterable[Site], see: Seen) -> list[Any]:
    """Hooks that call `see(site, tensor)` whenever a site is passed; returns their handles."""
    handles = []
    for site in sites:
        part = module.get_submodule(site.module)
        if site.side == "in":

            def before(_part: nn.Module, args: Any, kwargs: Any, site: Site = site) -> None:
                for tensor in tensors_in((args, kwargs))[:1]:
                    see(site, tensor)

            handles.append(part.register_forward_pre_hook(before, with_kwargs=True))
        else:

            def after(_part: nn.Module, _args: Any, output: Any, site: Site = site) -> None:
                for tensor in tensors_in(output)[:1]:
                    see(site, tensor)

            handles.append(part.register_forward_hook(after))
    return handles


@contextmanager
def _watched(module: nn.Module, sites: Iterable[Site], see: Seen) -> Iterator[None]:
    handles = watch(module, sites, see)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def passing_order(module: nn.Module, example: Batch, sites: Iterable[Site]) -> list[Site]:
    """The sites that are passed exactly once on an example, in that order."""
    seen: list[Site] = []
    with _watched(module, sites, lambda site, _value: seen.append(site)), evaluating(module):
        example.run(module)
    return [site for site in seen if seen.count(site) == 1]
