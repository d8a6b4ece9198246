"""Ways to fuse toy models of superposition: every one chooses what the fused hidden layer should compute.

A method is one registered function from a `ToyProblem` to one fused model. The first client is the reference. Methods
that move a client by a linear map share one line; the feature basis re-expresses each client's latents in the
reference's geometry and regresses the encoder from the inputs, because no linear map of activations can do that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from featalign.align.feature import FeatureMatch, decode_by_symmetry, fold, match_features
from featalign.align.regime import Regime, orthogonal_map, regime, ridge_map
from featalign.dictionaries import Basis, Dictionary, NeuronBasis, train
from featalign.errors import SpaceMismatch
from featalign.registry import Registry
from featalign.spaces.graph import Symmetry
from featalign.toy.models import ToyModels
from featalign.toy.packing import pack
from featalign.transport import solve

MINIMUM = 0.5  # correlation of two codes below which they are not the same feature
OWN = 0.5  # share of the matched latents' median variance below which an unmatched latent is a spare, not a feature
METHODS: Registry[Callable[[ToyProblem], ToyModels]] = Registry("toy fusion method")


@dataclass(frozen=True)
class ToyProblem:
    """K clients of one shape and what the server may look at.

    Attributes:
        clients: `K` models; the first is the reference.
        data: inputs of each client's own distribution, `K` tensors `[samples, n]`.
        probe: shared inputs without labels, `[samples, n]`.
        dictionaries: one trained on each client's own hidden activations.
        width: hidden units of the fused model; wider than the clients only for the union decode.
        joint: trains a dictionary on the concatenated activations of all clients (the universal basis).
        seed: of random bases.
    """

    clients: ToyModels
    data: tuple[torch.Tensor, ...]
    probe: torch.Tensor
    dictionaries: tuple[Dictionary, ...]
    width: int
    latents: int
    k: float
    seed: int = 0

    @cached_property
    def hidden(self) -> torch.Tensor:
        """Activations of the probe `[K, samples, m]`, what dictionaries read."""
        return self.clients.hidden(self.probe)

    @property
    def symmetry(self) -> Symmetry:
        """What the hidden space allows."""
        return Symmetry.SCALED_PERMUTATION if self.clients.config.hidden == "relu" else Symmetry.LINEAR

    def match(self, client: int, reference: int = 0) -> FeatureMatch:
        """Latents of a client matched with the reference's on the probe."""
        return match_codes(self.dictionaries[client], self.dictionaries[reference], *self.hidden[[client, reference]])

    @cached_property
    def regime(self) -> Regime:
        """How the second client's code relates to the reference's."""
        return regime(
            self.hidden[1], self.hidden[0], self.dictionaries[1], self.dictionaries[0], self.symmetry,
            pre=self.clients.pre(self.probe)[1], seed=self.seed,
        )  # fmt: skip

    @cached_property
    def joint(self) -> Dictionary:
        """One dictionary of the concatenated activations `[samples, K * m]`: a latent has an atom in every client."""
        together = torch.cat(list(self.hidden), 1)
        return train(together, self.latents, k=self.k, seed=self.seed, metadata={"space": "all clients"})


def match_codes(a: Basis, b: Basis, hidden_a: torch.Tensor, hidden_b: torch.Tensor) -> FeatureMatch:
    """Latents of two bases matched over activations; pairs below `MINIMUM` are not kept."""
    return match_features(a, b, zip(hidden_a.split(4096), hidden_b.split(4096)), minimum=MINIMUM)


def known_bias(problem: ToyProblem) -> torch.Tensor:
    """`[n]`: output biases averaged with the weight that each client has seen the feature."""
    seen = torch.stack([x.var(0) for x in problem.data])
    seen = (seen + 1e-12) / (seen + 1e-12).sum(0)
    return (seen * problem.clients.bias).sum(0)


def moved(problem: ToyProblem, find: Callable[[int], torch.Tensor]) -> ToyModels:
    """The average of all clients after each was moved by `find(client) -> O [m, m]`; readers by its transpose."""
    clients, count = problem.clients, len(problem.clients)
    if problem.width != clients.config.m:
        raise SpaceMismatch(
            f"clients of {clients.config.m} units, a fused model of {problem.width}; only 'union' changes widths"
        )
    maps = [torch.eye(clients.config.m)] + [find(client).float() for client in range(1, count)]
    encoder = torch.stack([out @ e for out, e in zip(maps, clients.encoder)]).mean(0)
    decoder = torch.stack([d @ out.T for out, d in zip(maps, clients.decoder)]).mean(0)
    return ToyModels(clients.config, encoder[None], decoder[None], clients.bias.mean(0)[None])


@METHODS.register("average")
def average(problem: ToyProblem) -> ToyModels:
    """Parameters averaged as they are."""
    return moved(problem, lambda client: torch.eye(problem.clients.config.m))


@METHODS.register("neuron-ot")
def neuron_ot(problem: ToyProblem) -> ToyModels:
    """Units matched by exact transport on the distance of their pre-activations (OTFusion, acts)."""
    pre = problem.clients.pre(problem.probe)

    def find(client: int) -> torch.Tensor:
        plan = solve(torch.cdist(pre[client].T.double(), pre[0].T.double()), method="exact")
        return torch.from_numpy(plan.dense() * problem.width).T

    return moved(problem, find)


@METHODS.register("procrustes")
def procrustes(problem: ToyProblem) -> ToyModels:
    """The orthogonal map that carries one client's activations closest to the reference's."""
    return moved(problem, lambda client: orthogonal_map(problem.hidden[client].double(), problem.hidden[0].double()))


@METHODS.register("procrustes-weights")
def procrustes_weights(problem: ToyProblem) -> ToyModels:
    """The orthogonal map between encoders: inputs are shared, so that columns correspond."""
    encoder = problem.clients.encoder.double()
    centred = encoder - encoder.mean(2, keepdim=True)
    return moved(problem, lambda client: orthogonal_map(centred[client].T, centred[0].T))


@METHODS.register("linear")
def linear(problem: ToyProblem) -> ToyModels:
    """Ridge regression of the reference's activations on the client's: the best linear map of activations."""
    hidden = problem.hidden.double()
    centred = hidden - hidden.mean(1, keepdim=True)
    return moved(problem, lambda client: ridge_map(centred[client], centred[0]).T)


@METHODS.register("cca")
def cca(problem: ToyProblem) -> ToyModels:
    """Canonical directions of the two codes identified with each other (CCA merge), everywhere with full weight."""
    hidden = problem.hidden.double()
    centred = hidden - hidden.mean(1, keepdim=True)

    def find(client: int) -> torch.Tensor:
        whiten, colour = [], []
        for h in (centred[client], centred[0]):
            values, vectors = torch.linalg.eigh(h.T @ h / len(h))
            root = values.clamp_min(1e-8 * float(values.max())).sqrt()
            whiten.append(vectors / root @ vectors.T)
            colour.append(vectors * root @ vectors.T)
        u, _, vh = torch.linalg.svd(whiten[1] @ (centred[0].T @ centred[client] / len(centred[0])) @ whiten[0])
        return colour[1] @ u @ vh @ whiten[0]

    return moved(problem, find)


@METHODS.register("pca-basis")
def pca_basis(problem: ToyProblem) -> ToyModels:
    """Principal components matched one to one by |correlation|, sign included: a dictionary without superposition."""
    hidden = problem.hidden.double()
    centred = hidden - hidden.mean(1, keepdim=True)

    def find(client: int) -> torch.Tensor:
        axes_a, axes_b = (torch.linalg.eigh(h.T @ h).eigenvectors for h in (centred[client], centred[0]))
        codes_a, codes_b = centred[client] @ axes_a, centred[0] @ axes_b
        cross = codes_a.T @ codes_b / torch.outer(codes_a.norm(dim=0), codes_b.norm(dim=0)).clamp_min(1e-12)
        rows, columns = linear_sum_assignment(-cross.abs().numpy())
        sign = cross[rows, columns].sign()
        return axes_b[:, columns] @ (sign[:, None] * axes_a[:, rows].T)

    return moved(problem, find)


@METHODS.register("feature-orthogonal")
def feature_orthogonal(problem: ToyProblem) -> ToyModels:
    """The rotation that carries matched atoms onto each other; for a ReLU space the units that share most features."""

    def find(client: int) -> torch.Tensor:
        bases = problem.dictionaries[client], problem.dictionaries[0]
        return decode_by_symmetry(problem.match(client), *bases, problem.symmetry)[0].out

    return moved(problem, find)


@METHODS.register("feature-fold")
def feature_fold(problem: ToyProblem) -> ToyModels:
    """The naive contrast: a linear map through matched atoms."""
    return moved(
        problem,
        lambda client: fold(problem.match(client), problem.dictionaries[client], problem.dictionaries[0]).out,
    )


@dataclass(frozen=True)
class LinearCodes:
    """What a client's latents are as linear functions of the layer's inputs, with amplitudes that add up to the layer.

    Attributes:
        response: `[F, n]`, regression of each code on the client's own inputs; columns it never saw are zero.
        atoms: `[F, m]`.
        variance: of each linear code on the client's data, `[F]`.
    """

    response: torch.Tensor
    atoms: torch.Tensor
    variance: torch.Tensor


def linear_codes(client: ToyModels, basis: Basis, x: torch.Tensor) -> LinearCodes:
    """Regress codes on inputs and refit one gain per latent, so that `sum_u response_u(x) atom_u` is the layer itself.

    The gain undoes what the dictionary's sparsity and shrinkage under-report; without it fused features come out small.
    """
    codes = basis.encode(client.hidden(x)[0]).double()
    inputs = x.double() - x.double().mean(0)
    second = inputs.T @ inputs / len(x)
    ridge = 1e-3 * second.diagonal().mean() * torch.eye(x.shape[1], dtype=torch.float64)
    response = torch.linalg.solve(second + ridge, inputs.T @ (codes - codes.mean(0)) / len(x)).T  # [F, n]
    atoms = basis.atoms.double()
    code_second = response @ second @ response.T  # [F, F]
    gram = code_second * (atoms @ atoms.T)
    target = ((response @ second @ client.encoder[0].double().T) * atoms).sum(1)
    shrink = 1e-2 * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    gain = torch.linalg.solve(gram + shrink, target + shrink.diagonal()).clamp(0.2, 5.0)
    response = gain[:, None] * response
    return LinearCodes(response, atoms, gain**2 * code_second.diagonal())


def re_expressed(problem: ToyProblem, bases: tuple[Basis, ...]) -> ToyModels:
    """Matched latents of every client in the reference's atoms at the reference's amplitude, regressed from inputs.

    Weights are pooled over clients' own data (each column counts where it was seen), the reference's layer enters as it
    is. A client's latents without a partner keep no place here: see `union`.
    """
    clients, reference = problem.clients, linear_codes(problem.clients[0], bases[0], problem.data[0])
    total = clients.encoder[0].double() * (seen := problem.data[0].var(0).double() + 1e-12)
    weight = seen.clone()
    for client in range(1, len(clients)):
        own = linear_codes(clients[client], bases[client], problem.data[client])
        pairs = match_codes(bases[client], bases[0], *problem.hidden[[client, 0]]).pairs
        first, second = torch.from_numpy(pairs[:, 0]), torch.from_numpy(pairs[:, 1])
        amplitude = (reference.variance[second] / own.variance[first].clamp_min(1e-12)).sqrt().clamp(0.2, 5.0)
        written = reference.atoms[second].T @ (amplitude[:, None] * own.response[first])
        total += written * (seen := problem.data[client].var(0).double() + 1e-12)
        weight += seen
    return with_readers(problem, (total / weight).float(), known_bias(problem))


def with_readers(problem: ToyProblem, encoder: torch.Tensor, bias: torch.Tensor) -> ToyModels:
    """The fused model for an encoder `[m, n]`: tied readers follow, free ones are regressed to outputs."""
    config = replace(problem.clients.config, m=len(encoder))
    if config.tied:
        return ToyModels.tied(encoder[None], bias[None], config)
    gram = torch.zeros(len(encoder), len(encoder), dtype=torch.float64)
    cross = torch.zeros(len(encoder), config.n, dtype=torch.float64)
    for client, x in enumerate(problem.data):
        hidden = x @ encoder.T
        hidden = (hidden.relu() if config.hidden == "relu" else hidden).double()
        target = problem.clients[client].hidden(x)[0] @ problem.clients.decoder[client].T
        gram += hidden.T @ hidden
        cross += hidden.T @ target.double()
    ridge = 1e-4 * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    return ToyModels(config, encoder[None], torch.linalg.solve(gram + ridge, cross).T.float()[None], bias[None])


@METHODS.register("feature-ot")
def feature_ot(problem: ToyProblem) -> ToyModels:
    """Latents matched by partial transport, re-expressed in the reference's atoms, encoder regressed from inputs."""
    return re_expressed(problem, tuple(problem.dictionaries))


@dataclass(frozen=True)
class RandomDictionary:
    """Untrained atoms `[F, m]` of unit norm, `k` largest projections: what matching finds without learning."""

    atoms: torch.Tensor
    k: int

    @property
    def name(self) -> str:
        return "random"

    def encode(self, activations: torch.Tensor) -> torch.Tensor:
        projected = (activations @ self.atoms.T).relu()
        kept = projected.topk(self.k, dim=1)
        return torch.zeros_like(projected).scatter_(1, kept.indices, kept.values)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        return codes @ self.atoms


@METHODS.register("random-dictionary")
def random_dictionary(problem: ToyProblem) -> ToyModels:
    """`feature-ot` with untrained dictionaries: the null of the feature basis."""
    draw = torch.Generator().manual_seed(problem.seed)
    shape = (problem.latents, problem.clients.config.m)
    atoms = [torch.nn.functional.normalize(torch.randn(shape, generator=draw), dim=1) for _ in problem.dictionaries]
    return re_expressed(problem, tuple(RandomDictionary(each, max(1, int(problem.k))) for each in atoms))


@METHODS.register("universal-dictionary")
def universal_dictionary(problem: ToyProblem) -> ToyModels:
    """One dictionary for all clients: a latent's code, read from everybody, written with the reference's atoms."""
    m, clients = problem.clients.config.m, problem.clients
    codes = problem.joint.encode(torch.cat(list(problem.hidden), 1)).double()
    inputs = problem.probe.double() - problem.probe.double().mean(0)
    second = inputs.T @ inputs / len(inputs)
    ridge = 1e-3 * second.diagonal().mean() * torch.eye(clients.config.n, dtype=torch.float64)
    response = torch.linalg.solve(second + ridge, inputs.T @ (codes - codes.mean(0)) / len(inputs)).T
    written = problem.joint.atoms[:, :m].double().T @ response
    scale = clients.encoder[0].double().norm() / written.norm().clamp_min(1e-12)
    count = len(clients)
    encoder = (clients.encoder[0].double() + (count - 1) * scale * written) / count
    return with_readers(problem, encoder.float(), known_bias(problem))


@METHODS.register("union")
def union(problem: ToyProblem) -> ToyModels:
    """Shared latents merged, own latents kept: all get directions in `width` units, the least coherent ones first.

    Directions are laid out anew or around the reference's, whichever returns the clients' own outputs better. Many own
    latents need the first; with few of them, or with features split over several latents, the second loses less.
    """
    clients, n = problem.clients, problem.clients.config.n
    codes = [linear_codes(clients[c], problem.dictionaries[c], problem.data[c]) for c in range(len(clients))]
    seen = [x.var(0).double() + 1e-12 for x in problem.data]
    merged, weight = codes[0].response * seen[0], seen[0].expand(len(codes[0].response), n).clone()
    alive = torch.nonzero(codes[0].variance > 1e-3 * codes[0].variance.max()).flatten()
    merged, weight, atoms = merged[alive], weight[alive], codes[0].atoms[alive]
    views = [problem.dictionaries[0].encode(problem.hidden[0])[:, alive]]
    for c in range(1, len(clients)):
        view = problem.dictionaries[c].encode(problem.hidden[c])
        match = match_codes(NeuronBasis(view.shape[1]), NeuronBasis(views[0].shape[1]), view, views[0])
        first, second = torch.from_numpy(match.pairs[:, 0]), torch.from_numpy(match.pairs[:, 1])
        merged[second] += codes[c].response[first] * seen[c]
        weight[second] += seen[c]
        own = torch.from_numpy(np.setdiff1d(np.arange(view.shape[1]), match.pairs[:, 0]))
        own = own[codes[c].variance[own] > OWN * codes[c].variance[first].median()]
        merged = torch.cat([merged, codes[c].response[own] * seen[c]])
        weight = torch.cat([weight, seen[c].expand(len(own), n)])
        atoms = torch.cat([atoms, torch.zeros(len(own), atoms.shape[1], dtype=torch.float64)])
        views[0] = torch.cat([views[0], view[:, own]], 1)
    response = merged / weight.clamp_min(1e-12)
    energy = (response**2 * torch.stack(seen).amax(0)).sum(1)  # as often as where it occurs most
    layouts = (pack(atoms, energy, problem.width, hold) for hold in (False, True))
    fused = [with_readers(problem, (layout.T @ response).float(), known_bias(problem)) for layout in layouts]
    return min(fused, key=lambda model: distillation_error(problem, model))


def distillation_error(problem: ToyProblem, fused: ToyModels) -> float:
    """Squared error against what clients return on their own inputs: mean over samples, sum over outputs, clients."""
    taught = ((problem.clients[c](x)[0], x) for c, x in enumerate(problem.data))
    return sum(float((fused(x)[0] - output).pow(2).sum(1).mean()) for output, x in taught)
