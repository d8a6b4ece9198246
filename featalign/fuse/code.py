"""Networks whose one hidden layer is a linear code of the inputs: which layers write and read it, and its parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from featalign.align.feature import FeatureMatch, match_features
from featalign.align.linear import solve_ridge
from featalign.data import Inputs, unwrap
from featalign.dictionaries.basis import Basis
from featalign.errors import SpaceMismatch, TaskError
from featalign.fuse.problem import FusionProblem
from featalign.spaces import apply_nonlinearity, rebuilt
from featalign.spaces.capture import evaluating, stream
from featalign.spaces.graph import Site, Space

GAINS = (0.2, 5.0)  # amplitudes of latents are corrected within these
BATCH = 4096
TINY = 1e-12


@dataclass(frozen=True)
class CodeLayers:
    """The layers around the hidden space.

    Attributes:
        space: its name.
        writer: the linear layer that writes it from the network's inputs.
        readers: the linear layers that read it; none where the writer's own weight does (tied decoders).
    """

    space: str
    writer: str
    readers: tuple[str, ...]


def code_layers(problem: FusionProblem) -> CodeLayers | str:
    """The layers, or in one clause why the clients are no such networks."""
    hidden, client = problem.graph.hidden, problem.clients[problem.reference]
    if len(hidden) != 1:
        return f"it encodes one hidden space anew, here are {len(hidden)}"
    space = hidden[0]
    if any(
        inputs.tensor is None or inputs.tensor.dim() != 2
        for inputs in (problem.cohort.refit_inputs, *problem.cohort.own)
    ):
        return "it regresses the hidden layer from inputs [samples, features]"
    writer = _writer(client, space)
    if writer is None:
        return f"space '{space.name}' is written by something else than one linear layer"
    if space.nonlinearity is None:
        return f"what follows space '{space.name}' is no elementwise nonlinearity"
    if not _reads_inputs(problem, writer):
        return f"layer '{writer}' reads something else than the network's inputs"
    readers = tuple(
        layer.module
        for layer in problem.graph.layers
        if layer.reads == space.name and layer.calls == 1 and isinstance(client.get_submodule(layer.module), nn.Linear)
    )
    read = {(axis.parameter, axis.repeat * axis.tile) for axis in space.readers}
    if read != {(f"{name}.weight", 1) for name in readers}:
        return f"space '{space.name}' is read by something else than linear layers"
    return CodeLayers(space.name, writer, readers)


def _writer(client: nn.Module, space: Space) -> str | None:
    """The linear layer whose whole output is the space, if that is all that writes it."""
    state = client.state_dict()
    weights = [axis.parameter for axis in space.writers if state[axis.parameter].dim() > 1]
    if len(weights) != 1 or space.scales or not weights[0].endswith(".weight"):
        return None
    name = weights[0].removesuffix(".weight")
    layer = client.get_submodule(name)
    whole = isinstance(layer, nn.Linear) and layer.out_features == space.size
    return name if whole and space.pre == Site(name) else None


def _reads_inputs(problem: FusionProblem, writer: str) -> bool:
    """Whether the layer runs once, on the network's inputs themselves."""
    client, example = problem.clients[problem.reference], problem.cohort.example
    seen: list[torch.Tensor] = []
    handle = client.get_submodule(writer).register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    try:
        with evaluating(client):
            example.run(client)
    finally:
        handle.remove()
    return len(seen) == 1 and torch.equal(seen[0], example.tensors[0].to(seen[0]))


@dataclass(frozen=True)
class LinearCodes:
    """What a client's latents are as linear functions of the inputs, with amplitudes that add up to the layer.

    Attributes:
        response: `[F, inputs]`, regression of each code on the client's own inputs; columns it never saw are zero.
        atoms: `[F, units]`.
        variance: of each linear code on the client's data, `[F]`.
    """

    response: torch.Tensor
    atoms: torch.Tensor
    variance: torch.Tensor


def responses(inputs: torch.Tensor, codes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Regression `[F, inputs]` of codes `[samples, F]` on inputs `[samples, inputs]`, and the inputs' covariance."""
    centred = inputs.double() - inputs.double().mean(0)
    covariance = centred.T @ centred / len(inputs)
    codes = codes.double()
    return solve_ridge(covariance, centred.T @ (codes - codes.mean(0)) / len(inputs), 1e-3).T, covariance


def linear_codes(inputs: torch.Tensor, posts: torch.Tensor, encoder: torch.Tensor, basis: Basis) -> LinearCodes:
    """Regress codes on inputs and refit one gain per latent, so that `sum_u response_u(x) atom_u` is the layer itself.

    The gain undoes what the dictionary's sparsity and shrinkage under-report; without it fused features come out small.
    """
    response, covariance = responses(inputs, basis.encode(posts))
    atoms = basis.atoms.detach().double()
    second = response @ covariance @ response.T  # [F, F]
    gram = second * (atoms @ atoms.T)
    target = ((response @ covariance @ encoder.T) * atoms).sum(1)
    gain = 1 + solve_ridge(gram, (target - gram.sum(1))[:, None], 1e-2)[:, 0]  # the ridge pulls towards one
    gain = gain.clamp(*GAINS)
    return LinearCodes(gain[:, None] * response, atoms, gain**2 * second.diagonal())


class ClientCodes:
    """All clients of a problem as linear codes: their data, matches and linear responses, each computed once."""

    def __init__(self, problem: FusionProblem):
        found = code_layers(problem)
        if isinstance(found, str):
            raise SpaceMismatch(found)
        self.problem, self.layers = problem, found
        self.spaces = [graph[found.space] for graph in problem.graphs]
        self.bases: tuple[Basis, ...] = tuple(problem.dictionaries[found.space])
        self.data = [_tensor(inputs) for inputs in problem.cohort.own]
        self.probe = _tensor(problem.cohort.refit_inputs)

    @cached_property
    def seen(self) -> list[torch.Tensor]:
        """`[inputs]` per client: mixing weight times how much of each input it has seen on its own data."""
        return [weight * (x.var(0).double() + TINY) for weight, x in zip(self.problem.mixing, self.data)]

    @cached_property
    def posts(self) -> list[torch.Tensor]:
        """Post-activations of every client on the refit inputs, `[samples, units]`."""
        batches = [
            [held[k][space.after] for k, space in enumerate(self.spaces)] for _, held, _ in self.problem.activations
        ]
        return [torch.cat(parts) for parts in zip(*batches)]

    def encoder(self, client: int) -> torch.Tensor:
        """`[units, inputs]` float64."""
        return self.problem.clients[client].get_parameter(f"{self.layers.writer}.weight").detach().double()

    def linear(self, client: int, basis: Basis) -> LinearCodes:
        """What the latents of a basis are as linear functions of the client's inputs."""

        def make() -> LinearCodes:
            _, posts = self.own_run(client)
            return linear_codes(self.data[client], posts, self.encoder(client), basis)

        parts = (self.problem.clients[client], self.problem.cohort.own[client], basis)
        return self.problem.memory.get("linear codes", parts, make)

    def match(self, client: int, bases: Sequence[Basis], minimum: float) -> FeatureMatch:
        """Latents of a client and of the reference matched on the refit inputs; pairs below `minimum` are not kept."""
        reference = self.problem.reference

        def make() -> FeatureMatch:
            held = zip(self.posts[client].split(BATCH), self.posts[reference].split(BATCH))
            return match_features(bases[client], bases[reference], held, minimum=minimum)

        parts = (bases[client], bases[reference], self.problem.activations, client, reference)
        return self.problem.memory.get(f"match above {minimum}", parts, make)

    def own_run(self, client: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Outputs and post-activations of a client on its own data."""
        module, inputs = self.problem.clients[client], self.problem.cohort.own[client]
        site = self.spaces[client].after

        def make() -> tuple[torch.Tensor, torch.Tensor]:
            outputs, held = zip(*stream(module, inputs, [site]))
            return torch.cat(outputs), torch.cat([each[site] for each in held])

        return self.problem.memory.get("own run", (module, inputs), make)

    def network(self, encoder: torch.Tensor) -> nn.Module:
        """The fused network for an encoder `[units, inputs]`: readers are regressed to the clients' on their own data.

        A reader tied to the encoder follows it. A bias of the layer keeps the reference's mean pre-activation; output
        biases are averaged with the weight that each client has seen the output.
        """
        reference = self.problem.clients[self.problem.reference]
        state = {name: tensor.detach() for name, tensor in reference.state_dict().items()}
        state[f"{self.layers.writer}.weight"] = encoder
        bias = f"{self.layers.writer}.bias"
        if bias in state:
            own = self.encoder(self.problem.reference) @ self.probe.double().mean(0)
            state[bias] = state[bias].double() + own - encoder @ self.probe.double().mean(0)
        state |= self._output_biases()
        for reader in self.layers.readers:
            state[f"{reader}.weight"] = self._reader(reader, encoder.float(), state.get(bias))
        return rebuilt(reference, state)

    def _reader(self, reader: str, encoder: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """`[outputs, units]`: regression of the clients' readings, without bias, on the fused layer."""
        gram: Any = 0
        cross: Any = 0
        for client, (weight, x) in enumerate(zip(self.problem.mixing, self.data)):
            pre = x.float() @ encoder.T + (0 if bias is None else bias.float())
            hidden = apply_nonlinearity(self.spaces[self.problem.reference], pre).double()
            own = self.problem.clients[client].get_parameter(f"{reader}.weight").detach()
            target = (self.own_run(client)[1].to(own) @ own.T).double()
            gram = gram + weight * hidden.T @ hidden / len(x)
            cross = cross + weight * hidden.T @ target / len(x)
        return solve_ridge(gram, cross, 1e-4).T

    def _output_biases(self) -> dict[str, torch.Tensor]:
        """`{parameter: [outputs]}`."""
        shares = torch.stack([self._seen_outputs(client) for client in range(len(self.problem.cohort))])
        shares = shares / shares.sum(0)
        found = {}
        for name, tensor in self.problem.clients[self.problem.reference].named_parameters():
            if tensor.shape == shares.shape[1:] and name != f"{self.layers.writer}.bias":
                biases = torch.stack([client.get_parameter(name).detach() for client in self.problem.clients])
                found[name] = (shares * biases.double()).sum(0)
        return found

    def _seen_outputs(self, client: int) -> torch.Tensor:
        """`[outputs]`: mixing weight times the variance of the targets on own data; alike where there are none."""
        weight, task, outputs = self.problem.mixing[client], self.problem.cohort.task, self.own_run(client)[0]
        try:
            found = [task.targets(batch) for batch in self.problem.cohort.own[client]]
            targets = torch.cat([torch.as_tensor(each) for each in found])
        except TaskError:
            targets = torch.zeros(0)
        if targets.shape != outputs.shape or not targets.is_floating_point():
            return torch.full(outputs.shape[1:], weight, dtype=torch.float64)
        return weight * (targets.var(0).double() + TINY)

    def distillation_error(self, fused: nn.Module) -> float:
        """Squared error against what clients return on their own inputs: mean over samples, sum over outputs, mixed."""
        total = 0.0
        for client, inputs in enumerate(self.problem.cohort.own):
            with evaluating(fused):
                found = torch.cat([unwrap(batch.run(fused)) for batch in inputs])
            error = (found - self.own_run(client)[0]).pow(2).flatten(1).sum(1).mean()
            total += self.problem.mixing[client] * float(error)
        return total


def _tensor(inputs: Inputs) -> torch.Tensor:
    """`[samples, features]`; that they are held so is part of `code_layers`."""
    found = inputs.tensor
    if found is None:
        raise SpaceMismatch("the inputs are no tensor [samples, features]; gather them first")
    return found
