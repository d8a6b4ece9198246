"""Refit from moments alone: no input leaves a client, only Gram matrices of what its layers read.

RegMean (Jin et al. 2023, eq. 2) generalised to maps. With `O_r`, `O_w` the out-maps of the space that a layer reads and
of the one that it writes, the fused layer is `argmin sum_k lambda_k E |W O_r x - O_w (W_k x + b_k)|^2` over each
client's own inputs, which needs of a client nothing but `G_k = E x x^T` and its weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import nn

from featalign.align.heads import gauged, gauged_inputs
from featalign.align.maps import Alignment, SpaceMap
from featalign.data.inputs import Inputs
from featalign.errors import BadOption, SpaceMismatch
from featalign.fuse.problem import TRIED, FusionProblem
from featalign.fuse.refit import LayerFit
from featalign.fuse.walk import watch
from featalign.fuse.writers import Writer, writers_of
from featalign.spaces.apply import Pieces, moved_tensor, pieces_of
from featalign.spaces.capture import evaluating, kept
from featalign.spaces.graph import Site, SpaceGraph
from featalign.transport import gromov

BATCH = 1024
INPUTS = "inputs"  # name under which moments of the inputs travel


def client_moments(module: nn.Module, graph: SpaceGraph, inputs: Inputs) -> dict[str, torch.Tensor]:
    """Mean Gram matrix of what every affine map multiplies, float32: `[n, n]`, or `[n + 1, n + 1]` with a bias.

    By the names of layers, or of parameters where a module multiplies with them itself (a HookedTransformer's).
    """
    writers = [writer for writer in writers_of(module, graph, inputs.example(TRIED)) if writer.calls == 1]
    by_site: dict[Site, list[Writer]] = {}
    for writer in writers:
        by_site.setdefault(writer.reads, []).append(writer)
    found: dict[str, Any] = {}
    mask: list[Any] = [None]

    def note(site: Site, value: torch.Tensor) -> None:
        rows = kept(value.detach(), mask[0])
        for writer in by_site[site]:
            found[writer.name] = found.get(writer.name, 0) + writer.gram(module, rows)

    handles = watch(module, by_site, note)
    try:
        with evaluating(module):
            for batch in inputs.batched(BATCH):
                mask[0] = batch.mask
                batch.run(module)
    finally:
        for handle in handles:
            handle.remove()
    means = {name: (gram / gram[-1, -1]).float() for name, gram in found.items()}  # the corner counts rows
    return {w.name: means[w.name] if w.bias is not None else means[w.name][:-1, :-1].contiguous() for w in writers}


def input_moments(inputs: Inputs) -> torch.Tensor:
    """Mean Gram matrix `[d + 1, d + 1]` of the inputs themselves, flattened, ones appended.

    Raises `BadOption` for inputs that are not one tensor of numbers.
    """
    if inputs.tensor is None or not inputs.tensor.is_floating_point():
        raise BadOption("a synthetic probe wants inputs as one tensor of floats; use probe='public'")
    total: Any = 0
    for rows in inputs.tensor.flatten(1).split(BATCH):
        x = torch.cat([rows.double(), torch.ones(len(rows), 1, dtype=torch.float64)], 1)
        total = total + x.T @ x
    return (total / total[-1, -1]).float()


def synthetic_probe(
    grams: Sequence[torch.Tensor], mixing: Sequence[float], shape: Sequence[int], samples: int, seed: int
) -> torch.Tensor:
    """Inputs `[samples, *shape]` drawn from the clients' Gaussians of `input_moments`, as often as they count."""
    generator = torch.Generator().manual_seed(seed)
    shares = torch.tensor(list(mixing), dtype=torch.float64)
    drawn = torch.multinomial(shares, samples, replacement=True, generator=generator)
    parts = []
    for k, gram in enumerate(grams):
        mean = gram[-1, :-1].double()
        values, axes = torch.linalg.eigh(gram[:-1, :-1].double() - torch.outer(mean, mean))
        noise = torch.randn(int((drawn == k).sum()), len(mean), generator=generator, dtype=torch.float64)
        parts.append(mean + noise @ (axes * values.clamp_min(0).sqrt()).T)
    return torch.cat(parts).float().reshape(-1, *shape)


def noised(gram: torch.Tensor, sigma: float, generator: torch.Generator) -> torch.Tensor:
    """A Gram matrix with symmetric Gaussian noise, `sigma` in units of its mean diagonal, brought back to the cone.

    What is measured with it is the cost of noise; no privacy is claimed for any `sigma`.
    """
    noise = torch.randn(gram.shape, generator=generator, dtype=torch.float64)
    noise = (noise.triu() + noise.triu(1).T) * sigma * float(gram.diagonal().mean())
    values, axes = torch.linalg.eigh(gram.double() + noise)
    return ((axes * values.clamp_min(0)) @ axes.T).to(gram.dtype)


def gromov_alignments(problem: FusionProblem, moments: Sequence[Mapping[str, torch.Tensor]]) -> list[Alignment]:
    """Permutations of units from the clients' own Gram matrices alone: no input is shared, real or drawn.

    Units are matched by how they correlate with the units of their own client (Memoli 2011); the plan is rounded to the
    assignment that shares most of it. Raises `BadOption` where a hidden space has no moments.
    """
    reference = problem.reference
    found = []
    for k in range(len(problem.graphs)):
        maps = {}
        for space in problem.graph.hidden:
            if k == reference:
                maps[space.name] = SpaceMap.identity(space.size, space.symmetry)
                continue
            a, b = (_correlation(problem.graphs[i], space.name, moments[i]) for i in (k, reference))
            plan = gromov(a, b)
            rows, columns = linear_sum_assignment(-plan.dense())
            out = torch.zeros(b.shape[0], a.shape[0], dtype=torch.float64)
            out[torch.from_numpy(columns), torch.from_numpy(rows)] = 1.0
            maps[space.name] = SpaceMap(out, out.T.contiguous(), space.symmetry)
        found.append(Alignment(maps))
    return found


def _correlation(graph: SpaceGraph, space: str, moments: Mapping[str, torch.Tensor]) -> Any:
    """Cosines between the units of a space on a client's own data `[n, n]`, from what a layer that reads it told."""
    size = graph[space].size
    for layer in graph.layers:
        if layer.reads == space and layer.module in moments and len(moments[layer.module]) in (size, size + 1):
            gram = moments[layer.module][:size, :size].double()
            scale = gram.diagonal().clamp_min(1e-12).sqrt()
            return (gram / torch.outer(scale, scale)).numpy()
    raise BadOption(f"space '{space}' is read by no layer whose moments were sent; align by a method instead")


def moment_refit(
    problem: FusionProblem,
    fused: nn.Module,
    alignments: Sequence[Alignment],
    moments: Sequence[Mapping[str, torch.Tensor]],
    ridge: float = 1e-2,
    alpha: float = 1.0,
) -> list[LayerFit]:
    """Refit the affine layers of `fused` in place from the clients' Gram matrices.

    Args:
        alignments: what `fused` was made with.
        moments: what `client_moments` gave, per client; clients of mixing weight zero may send none.
        ridge: towards the weights of `fused`, relative to the mean diagonal of the Gram matrix.
        alpha: factor on what lies off the diagonal of every Gram matrix, between 0 and 1 (RegMean, section 3.2).

    Maps that a Gram matrix is missing of keep the rule's weights. Shares explained are of uncentred energy. Raises
    `BadOption` for a ridge that is not positive, another alpha and maps with a shift, `SpaceMismatch` for moments of
    another shape.
    """
    if not 0 < ridge < float("inf"):
        raise BadOption(f"ridge = {ridge}; give a positive finite number, relative to each layer's Gram matrix")
    if not 0 <= alpha <= 1:
        raise BadOption(f"alpha = {alpha}; give a number between 0 (diagonals alone) and 1 (whole Gram matrices)")
    if any(found.shift is not None for alignment in alignments for found in alignment.maps.values()):
        raise BadOption("maps with a shift want a probe; refit with refit=true, or match by a method without shifts")
    taking = [k for k, weight in enumerate(problem.mixing) if weight > 0]
    pieces = {k: _out_pieces(problem.graphs[k], alignments[k]) for k in taking}
    clients = {k: gauged(problem.clients[k], problem.graphs[k], alignments[k].gauge) for k in taking}
    fits = []
    for writer in problem.writers:
        if writer.calls != 1 or not problem.paired(writer) or any(writer.name not in moments[k] for k in taking):
            continue
        told = {}
        for k in taking:
            gauge = alignments[k].gauge
            told[k] = _turned_gram(moments[k][writer.name].double(), writer, clients[k], problem.graphs[k], gauge)
        fits.append(_solve(problem, fused, writer, clients, pieces, told, ridge, alpha))
    return fits


def _turned_gram(
    second: torch.Tensor, writer: Writer, module: nn.Module, graph: SpaceGraph, gauge: Mapping[str, torch.Tensor]
) -> torch.Tensor:
    """Moments of what a map reads in a client, in the bases that its heads are turned into."""
    shape = module.get_parameter(writer.weight).shape
    whole = prod(shape[d] for d in writer.ins) + (writer.bias is not None)
    if not gauge or len(writer.outs) != 1 or second.shape != (whole, whole):
        return second
    order = [1 + writer.ins.index(d) if d in writer.ins else 0 for d in range(len(shape))]

    def turned(rows: torch.Tensor) -> torch.Tensor:
        body = rows[:, :-1] if writer.bias is not None else rows
        laid_out = body.reshape(-1, *(shape[d] for d in writer.ins)).permute(order)
        values = gauged_inputs(laid_out, writer.weight, writer.ins, graph, gauge)
        values = values.permute([order.index(d) for d in range(len(order))]).flatten(1)
        return values if writer.bias is None else torch.cat([values, rows[:, -1:]], 1)

    return turned(turned(second).T)


def _out_pieces(graph: SpaceGraph, alignment: Alignment) -> Pieces:
    """The out-maps laid out along everything that writes a space, and along everything that reads it."""
    out = {name: SpaceMap(found.out, found.out.T, found.symmetry) for name, found in alignment.maps.items()}
    return pieces_of(graph, out)


def _solve(
    problem: FusionProblem,
    fused: nn.Module,
    writer: Writer,
    clients: Mapping[int, nn.Module],
    pieces: Mapping[int, Pieces],
    moments: Mapping[int, torch.Tensor],
    ridge: float,
    alpha: float,
) -> LayerFit:
    initial = _matrix(fused, writer)
    gram, cross, energy = initial.new_zeros(initial.shape[1], initial.shape[1]), torch.zeros_like(initial), 0.0
    for k, second in moments.items():
        weight, client = problem.mixing[k], clients[k]
        own = _matrix(client, writer)
        if second.shape != (own.shape[1],) * 2:
            raise SpaceMismatch(f"moments of '{writer.name}' {list(second.shape)}; expected {own.shape[1]} squared")
        second = alpha * second + (1 - alpha) * torch.diag(second.diagonal())
        target = writer.moved(own.T, client, pieces[k]).T
        half = target @ second
        energy += weight * float((half * target).sum())
        half = _read(half, writer, client, pieces[k])
        second = _read(_read(second, writer, client, pieces[k]).T, writer, client, pieces[k])
        gram, cross = gram + weight * second, cross + weight * half
    scale = ridge * gram.diagonal().mean().clamp_min(1e-12)
    damped = gram + scale * torch.eye(len(gram), dtype=gram.dtype)
    solution = initial + torch.linalg.solve(damped, (cross - initial @ gram).T).T
    writer.write(fused, *((solution[:, :-1], solution[:, -1]) if writer.bias is not None else (solution, None)))

    def explained(weights: torch.Tensor) -> float:
        error = float((weights @ gram * weights).sum()) - 2 * float((cross * weights).sum()) + energy
        return 1 - error / max(energy, 1e-30)

    return LayerFit(writer.name, explained(initial), explained(solution))


def _matrix(module: nn.Module, writer: Writer) -> torch.Tensor:
    """The weight `[out, fan-in]`, the bias as a last column where there is one, float64."""
    weight, bias = writer.matrix(module).double(), writer.offset(module)
    return weight if bias is None else torch.cat([weight, bias.double()[:, None]], dim=1)


def _read(rows: torch.Tensor, writer: Writer, module: nn.Module, pieces: Pieces) -> torch.Tensor:
    """`rows [m, fan-in (+ 1)]` of a client with out-maps applied along the fan-in; a last column for the bias stays."""
    body = rows if writer.bias is None else rows[:, :-1]
    shape = module.get_parameter(writer.weight).shape
    local = {("x", 1 + place): pieces[writer.weight, dim] for place, dim in enumerate(writer.ins)}
    values = moved_tensor(body.reshape(-1, *(shape[d] for d in writer.ins)), "x", local).flatten(1)
    return values if writer.bias is None else torch.cat([values, rows[:, -1:]], 1)
