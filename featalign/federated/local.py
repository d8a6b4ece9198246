"""What a client does in a round: train from the server's weights, then send what was asked for.

An algorithm is a registered function that gives the term it adds to the gradient of every parameter.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from featalign.clients.training import TrainConfig, train
from featalign.data.inputs import Inputs
from featalign.dictionaries.dictionary import Dictionary
from featalign.dictionaries.store import cached_dictionaries
from featalign.errors import BadOption
from featalign.federated.calibrate import readout_moments
from featalign.federated.federation import Federation
from featalign.federated.messages import Order, Report, State
from featalign.federated.sums import masked
from featalign.fuse.moments import INPUTS, client_moments, input_moments, noised
from featalign.options import bind_options
from featalign.registry import Registry
from featalign.spaces import canonical, trace

Correction = Callable[[str, torch.Tensor], torch.Tensor]
Algorithm = Callable[..., Correction | None]
ALGORITHMS: Registry[Algorithm] = Registry("local algorithm")


@ALGORITHMS.register("plain")
def plain(start: State, server: State, own: State) -> None:
    """The task's loss alone."""


@ALGORITHMS.register("fedprox")
def fedprox(start: State, server: State, own: State, *, mu: float = 0.01) -> Correction:
    """`mu / 2 |w - w_server|^2` added to the loss (Li et al. 2020)."""
    return lambda name, value: mu * (value - start[name])


@ALGORITHMS.register("scaffold")
def scaffold(start: State, server: State, own: State) -> Correction:
    """Gradients corrected by the control variates of server and client, `g - c_k + c` (Karimireddy et al. 2020)."""
    return lambda name, value: server[name] - own[name]


@dataclass(frozen=True)
class Local:
    """How clients train.

    Attributes:
        algorithm, options: a registered name and its options.
        train: optimiser, epochs and batches; None takes the federation's recipe.
        architecture: of dictionaries, where the server's method wants them.
        noise: Gaussian, on the entries of moments, in units of the mean diagonal of each Gram matrix.
    """

    algorithm: str = "plain"
    options: Mapping[str, Any] = field(default_factory=dict)
    train: TrainConfig | None = None
    architecture: str = "topk"
    noise: float = 0.0

    def __post_init__(self) -> None:
        bound = bind_options(ALGORITHMS[self.algorithm], self.options, f"local algorithm '{self.algorithm}'")
        object.__setattr__(self, "options", bound)
        if not 0 <= self.noise < float("inf"):
            raise BadOption(f"noise = {self.noise}; give a finite number that is not negative")

    @property
    def controlled(self) -> bool:
        """Whether control variates travel."""
        return self.algorithm == "scaffold"

    def config(self, federation: Federation) -> TrainConfig:
        """How clients of this federation train; raises `BadOption` where the algorithm does not allow it."""
        found = self.train or federation.recipe
        simple = found.optimizer == "sgd" and found.schedule == "constant"
        if self.controlled and self.train is None and simple:
            found = replace(found, momentum=0.0)
        if self.controlled and not (simple and found.momentum == 0):
            raise BadOption("scaffold wants plain steps: optimizer='sgd', schedule='constant', momentum=0")
        return found


def update(federation: Federation, order: Order, local: Local, control: State | None = None) -> Report:
    """Train the client that an order names, and make its report; without training, moments for a calibration.

    `control` is the client's own variate of SCAFFOLD, which only its change leaves.
    """
    began = time.perf_counter()
    k = federation.names.index(order.client)
    module = federation.make(order.init_seed)
    if order.weights:
        module.load_state_dict(order.weights)
    if not order.train:
        moments = _shielded(readout_moments(module, federation.task, federation.own[k]), order, local)
        spent = {"samples": float(len(federation.own[k])), "seconds": time.perf_counter() - began}
        return Report(order.round, order.client, {}, moments=moments, statistics=spent)
    start = {name: value.detach().clone() for name, value in module.named_parameters()}
    zero = {name: torch.zeros_like(value) for name, value in start.items()}
    server, own = order.control or zero, control or zero
    correction = ALGORITHMS[local.algorithm](start, server, own, **local.options)
    config, inputs = local.config(federation), federation.own[k]
    handles = [] if correction is None else _corrected(module, correction)
    losses = train(
        module, inputs, None, federation.task, config, order.order_seed, progress=False, name=f"client {order.client}"
    )
    for handle in handles:
        handle.remove()
    steps = config.steps if config.steps is not None else config.epochs * inputs.batches(config.batch_size)
    change = _control_change(module, start, server, steps, config.lr) if local.controlled else {}
    moments, dictionaries = _extras(federation, order, module, local)
    state = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
    statistics = {
        "samples": float(len(inputs)),
        "loss": losses[-1] if losses else float("nan"),
        "steps": float(steps),
        "seconds": time.perf_counter() - began,
    }
    return Report(order.round, order.client, state, change, moments, dictionaries, statistics)


def _corrected(module: nn.Module, correction: Correction) -> list[Any]:
    """Hooks that add the correction to every gradient when it is complete."""

    def add(name: str) -> Callable[[torch.Tensor], None]:
        def hook(parameter: torch.Tensor) -> None:
            if parameter.grad is not None:
                parameter.grad.add_(correction(name, parameter.detach()))

        return hook

    return [value.register_post_accumulate_grad_hook(add(name)) for name, value in module.named_parameters()]


def _control_change(module: nn.Module, start: State, server: State, steps: int, lr: float) -> State:
    """`c_k^+ - c_k = (x - y) / (steps lr) - c`, option II of Karimireddy et al. 2020."""
    scale = 1 / max(steps * lr, 1e-30)
    return {name: scale * (start[name] - value.detach()) - server[name] for name, value in module.named_parameters()}


def _extras(
    federation: Federation, order: Order, module: nn.Module, local: Local
) -> tuple[State, dict[str, Dictionary]]:
    """Moments and dictionaries of the trained network on the client's own inputs, as far as the server wants them."""
    if not order.wants:
        return {}, {}
    inputs = federation.own[federation.names.index(order.client)]
    example = inputs.example().on(module).example
    folded = canonical(module, example).module
    graph = trace(folded, example)
    moments = client_moments(folded, graph, inputs) if "moments" in order.wants else {}
    if "input-moments" in order.wants:
        moments[INPUTS] = input_moments(inputs)
    moments = _shielded(moments, order, local)
    if "dictionaries" not in order.wants:
        return moments, {}
    found = cached_dictionaries(
        [folded], [graph], [_tensor(inputs, order.client)], [order.client], local.architecture, order.order_seed
    )
    return moments, {space: members[0] for space, members in found.items()}


def _shielded(moments: State, order: Order, local: Local) -> State:
    """Moments as they leave the client: with noise, and masked where only their sum is wanted."""
    if local.noise:
        generator = torch.Generator().manual_seed(order.order_seed + 1)
        moments = {name: noised(gram, local.noise, generator) for name, gram in moments.items()}
    if not order.peers:
        return moments
    shares = {name: order.share * gram.double() for name, gram in moments.items()}
    return masked(shares, order.client, order.peers, order.order_seed)


def _tensor(inputs: Inputs, client: str) -> torch.Tensor:
    if inputs.tensor is None:
        raise BadOption(f"dictionaries of client {client} want its inputs as one tensor")
    return inputs.tensor
