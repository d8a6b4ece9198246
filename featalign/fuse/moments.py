"""Refit from moments alone: no input leaves a client, only Gram matrices of what its layers read.

RegMean (Jin et al. 2023, eq. 2) generalised to maps. With `O_r`, `O_w` the out-maps of the space that a layer reads and
of the one that it writes, the fused layer is `argmin sum_k lambda_k E |W O_r x - O_w (W_k x + b_k)|^2` over each
client's own inputs, which needs of a client nothing but `G_k = E x x^T` and its weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import nn

from featalign.align.maps import Alignment, SpaceMap
from featalign.data.inputs import Inputs
from featalign.errors import BadOption, SpaceMismatch
from featalign.fuse.problem import FusionProblem
from featalign.fuse.refit import LayerFit
from featalign.spaces import affine
from featalign.spaces.capture import evaluating, kept
from featalign.spaces.graph import Layer, SpaceGraph
from featalign.transport import gromov

BATCH = 1024
INPUTS = "inputs"  # name under which moments of the inputs travel


def client_moments(module: nn.Module, graph: SpaceGraph, inputs: Inputs) -> dict[str, torch.Tensor]:
    """Mean Gram matrix of what every affine layer multiplies, float32: `[n, n]`, or `[n + 1, n + 1]` with a bias."""
    layers = [layer.module for layer in graph.layers if layer.calls == 1]
    layers = [name for name in layers if affine.is_affine(module.get_submodule(name))]
    found: dict[str, Any] = {}
    mask: list[Any] = [None]

    def note(name: str) -> Any:
        def hook(part: nn.Module, args: tuple[Any, ...]) -> None:
            value = kept(args[0].detach(), mask[0])
            found[name] = found.get(name, 0) + affine.gram(part, value, augmented=True)

        return hook

    handles = [module.get_submodule(name).register_forward_pre_hook(note(name)) for name in layers]
    try:
        with evaluating(module):
            for batch in inputs.batched(BATCH):
                mask[0] = batch.mask
                batch.run(module)
    finally:
        for handle in handles:
            handle.remove()
    means = {name: (gram / gram[-1, -1]).float() for name, gram in found.items()}  # the corner counts rows
    return {
        name: gram if module.get_submodule(name).bias is not None else gram[:-1, :-1].contiguous()
        for name, gram in means.items()
    }


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

    Layers that a Gram matrix is missing of keep the rule's weights. Shares explained are of uncentred energy. Raises
    `BadOption` for a ridge that is not positive, another alpha and maps with a shift, `SpaceMismatch` for moments of
    another shape.
    """
    if not 0 < ridge < float("inf"):
        raise BadOption(f"ridge = {ridge}; give a positive finite number, relative to each layer's Gram matrix")
    if not 0 <= alpha <= 1:
        raise BadOption(f"alpha = {alpha}; give a number between 0 (diagonals alone) and 1 (whole Gram matrices)")
    if any(found.shift is not None for alignment in alignments for found in alignment.maps.values()):
        raise BadOption("maps with a shift want a probe; refit with refit=true, or match by a method without shifts")
    fits = []
    taking = [k for k, weight in enumerate(problem.mixing) if weight > 0]
    for layer in problem.graph.layers:
        if not _refittable(problem, fused, layer):
            continue
        tiles = [_tile(problem.graphs[k], layer) for k in taking]
        if any(layer.module not in moments[k] for k in taking) or None in tiles:
            continue
        fits.append(_solve(problem, fused, layer, alignments, moments, taking, ridge, alpha))
    return fits


def _solve(
    problem: FusionProblem,
    fused: nn.Module,
    layer: Layer,
    alignments: Sequence[Alignment],
    moments: Sequence[Mapping[str, torch.Tensor]],
    taking: Sequence[int],
    ridge: float,
    alpha: float,
) -> LayerFit:
    part = fused.get_submodule(layer.module)
    initial = _matrix(part)
    gram, cross, energy = initial.new_zeros(initial.shape[1], initial.shape[1]), torch.zeros_like(initial), 0.0
    for k in taking:
        weight, maps = problem.mixing[k], alignments[k].maps
        own = _matrix(problem.clients[k].get_submodule(layer.module))
        second = moments[k][layer.module].double()
        if second.shape != (own.shape[1],) * 2:
            raise SpaceMismatch(
                f"moments of layer '{layer.module}' {list(second.shape)}; expected {own.shape[1]} squared"
            )
        second = alpha * second + (1 - alpha) * torch.diag(second.diagonal())
        target = maps[layer.writes].out.double() @ own if layer.writes in maps else own
        half = target @ second
        energy += weight * float((half * target).sum())
        if layer.reads in maps:
            out, tile = maps[layer.reads].out.double(), _tile(problem.graphs[k], layer) or 1
            augmented = part.bias is not None
            half = _moved(half.T, out, tile, augmented).T
            second = _moved(_moved(second, out, tile, augmented).T, out, tile, augmented)
        gram, cross = gram + weight * second, cross + weight * half
    scale = ridge * gram.diagonal().mean().clamp_min(1e-12)
    damped = gram + scale * torch.eye(len(gram), dtype=gram.dtype)
    solution = initial + torch.linalg.solve(damped, (cross - initial @ gram).T).T
    affine.write(part, *((solution[:, :-1], solution[:, -1]) if part.bias is not None else (solution,)))

    def explained(weights: torch.Tensor) -> float:
        error = float((weights @ gram * weights).sum()) - 2 * float((cross * weights).sum()) + energy
        return 1 - error / max(energy, 1e-30)

    return LayerFit(layer.module, explained(initial), explained(solution))


def _refittable(problem: FusionProblem, fused: nn.Module, layer: Layer) -> bool:
    """Whether a layer runs once and writes all of its space, its rows ordered alike by all clients."""
    part = fused.get_submodule(layer.module)
    if layer.calls != 1 or not affine.is_affine(part):
        return False
    return problem.paired_rows(layer) and len(affine.matrix(part)) == problem.graph[layer.writes].size


def _matrix(part: nn.Module) -> torch.Tensor:
    """The weight `[out, fan-in]`, the bias as a last column where there is one, float64."""
    weight, bias = affine.matrix(part).double(), part.bias
    return weight if bias is None else torch.cat([weight, bias.detach().double()[:, None]], dim=1)  # type: ignore[operator]


def _moved(rows: torch.Tensor, out: torch.Tensor, tile: int, augmented: bool) -> torch.Tensor:
    """`rows [fan-in, m]` with a map applied to the units along the fan-in; a last row of ones stays."""
    body = rows[:-1] if augmented else rows
    shaped = body.reshape(tile, out.shape[1], -1, rows.shape[1])
    moved = torch.einsum("mn,tnrc->tmrc", out, shaped).reshape(-1, rows.shape[1])
    return torch.cat([moved, rows[-1:]]) if augmented else moved


def _tile(graph: SpaceGraph, layer: Layer) -> int | None:
    """How often all units of a space follow each other in the fan-in; None where they are not all of it.

    Nor are they where another space lies along it (groups of channels).
    """
    if graph[layer.reads].pinned:
        return 1
    weight = f"{layer.module}.weight"
    found = [(s.name, axis) for s in graph.hidden for axis in s.readers if axis.parameter == weight]
    if any(name != layer.reads for name, _ in found):
        return None
    axes = [axis for _, axis in found]
    return axes[0].tile if len(axes) == 1 and axes[0].offset == 0 else None
